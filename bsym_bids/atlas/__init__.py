"""The 450-ROI atlas."""
