#!/bin/bash
# Made by bsym-bids @version@ for @participants@.
#
#     bash THIS_FILE [options of sbatch, as --account=... or --partition=...]
#
# submits an array job, one task for each participant, and the group level, which starts when all have
# ended, whatever became of them. The same again goes on with what was killed or ran out of time: when
# nothing of it is queued any more. The numbers at the end are what jobs ask for.
set -euo pipefail

# How bsym-bids is started. In a container, for example:
#     BSYM=(apptainer run --cleanenv --bind /data,/out bsym.sif)
BSYM=(@command@)
BIDS_DIR=@bids_dir@
OUTPUT_DIR=@output_dir@
OPTIONS=(@options@)
GROUP_OPTIONS=(@group_options@) # here comes what the group level shall do: --predict age
THROTTLE=@throttle@ # tasks of an array at once
LOGS=$OUTPUT_DIR/logs/slurm
# What jobs need besides comes here, as in "module load mrtrix3".
@variables@

@lists@

# What a job runs: participants LIST NUMBER GB, or group GB
case "${1:-}" in
    participants)
        list="$2[@]"
        labels=("${!list}")
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
SUBMITTED=()
take_back() {
    if [ ${#SUBMITTED[@]} -gt 0 ]; then
        echo "not all jobs could be submitted: cancelling ${SUBMITTED[*]}" >&2
        scancel "${SUBMITTED[@]}"
    fi
    exit 1
}
send() { # name, cores, GB, minutes, log, then options of sbatch and what the job runs
    local id
    id=$(sbatch --parsable --job-name="bsym-$1" --cpus-per-task="$2" --mem="${3}G" --time="$4" \
        --output="${LOGS//%/%%}/$5" --open-mode=append ${SBATCH[@]+"${SBATCH[@]}"} "${@:6}") || take_back
    id=${id%%;*}
    if [ -n "$id" ]; then # with --test-only there is none
        echo "bsym-$1: job $id"
        SUBMITTED+=("$id")
    fi
}
submit() { # list, participants of a task, cores, GB, GB that steps may use, minutes
    local list="$1[@]"
    local people=("${!list}")
    local last=$(((${#people[@]} - 1) / $2))
    send "$1" "$3" "$4" "$6" "%x_%A_%a.txt" --array="0-$last%$THROTTLE" \
        "$0" participants "$1" "$2" "$5"
}
submit_group() { # cores, GB, GB that steps may use, minutes
    local arrays=${SUBMITTED[*]+"${SUBMITTED[*]}"}
    send group "$1" "$2" "$4" "%x_%j.txt" ${arrays:+--dependency=afterany:"${arrays// /:}"} \
        "$0" group "$3"
}
mkdir -p "$LOGS"
@submissions@
submit_group @group@
