#!/bin/bash
# Made by bsym-bids @version@ for @participants@.
#
#     bash THIS_FILE [options of sbatch, as --account=... or --partition=...]
#
# submits an array job, one task for each participant, and the group level, which starts when all have
# ended, whatever became of them. The same again, later, goes on with what was killed or ran out of
# time. The numbers at the end are what jobs ask for.
set -euo pipefail

# How bsym-bids is started. In a container, for example:
#     BSYM=(apptainer run --cleanenv --bind /data:/data:ro,/out:/out bsym.sif)
BSYM=(@command@)
BIDS_DIR=@bids_dir@
OUTPUT_DIR=@output_dir@
OPTIONS=(@options@)
GROUP_OPTIONS=(@group_options@) # here comes what the group level shall do: --predict age
THROTTLE=@throttle@ # tasks of an array at once
LOGS=$OUTPUT_DIR/logs/slurm

@lists@

# What a job runs: participants LIST NUMBER GB, or group GB
case "${1:-}" in
    participants)
        declare -n labels=$2
        exec "${BSYM[@]}" "$BIDS_DIR" "$OUTPUT_DIR" participant \
            --participant-label "${labels[@]:SLURM_ARRAY_TASK_ID * $3:$3}" \
            --nprocs "$SLURM_CPUS_PER_TASK" --mem-gb "$4" ${OPTIONS[@]+"${OPTIONS[@]}"}
        ;;
    group)
        exec "${BSYM[@]}" "$BIDS_DIR" "$OUTPUT_DIR" group \
            --nprocs "$SLURM_CPUS_PER_TASK" --mem-gb "$2" ${GROUP_OPTIONS[@]+"${GROUP_OPTIONS[@]}"}
        ;;
esac

SBATCH=("$@")
AFTER=
send() { # name, cores, GB, minutes, then options of sbatch and what the job runs
    local id
    id=$(sbatch --parsable --job-name="bsym-$1" --cpus-per-task="$2" --mem="${3}G" --time="$4" \
        --output="$LOGS/%x_%j.txt" ${SBATCH[@]+"${SBATCH[@]}"} "${@:5}")
    echo "bsym-$1: job ${id%%;*}"
    AFTER=$AFTER:${id%%;*}
}
submit() { # list, participants of a task, cores, GB, GB that steps may use, minutes
    declare -n people=$1
    local last=$(((${#people[@]} - 1) / $2))
    send "$1" "$3" "$4" "$6" --array="0-$last%$THROTTLE" --output="$LOGS/%x_%A_%a.txt" \
        "$0" participants "$1" "$2" "$5"
}
submit_group() { # cores, GB, GB that steps may use, minutes
    send group "$1" "$2" "$4" ${AFTER:+--dependency=afterany$AFTER} "$0" group "$3"
}
mkdir -p "$LOGS"
@submissions@
submit_group @group@
