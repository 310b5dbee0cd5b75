"""What is said of a cohort as such: its scaling, who is identified, what is reliable or changes."""
