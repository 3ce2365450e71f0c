#!/usr/bin/env bash
# Train under slurm: [GPUS=8] [GPUS_PER_NODE=8] slurm_train.sh PARTITION JOB CONFIG [options of train.py]
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS=...] $0 PARTITION JOB CONFIG [options of train.py]" >&2
    exit 2
fi
partition=$1 job=$2 config=$3
shift 3

# shellcheck disable=SC2086  # SRUN_ARGS holds several words
exec srun -p "$partition" --job-name="$job" --kill-on-bad-exit=1 \
    --ntasks="${GPUS:-8}" --ntasks-per-node="${GPUS_PER_NODE:-8}" \
    --gres="gpu:${GPUS_PER_NODE:-8}" --cpus-per-task="${CPUS_PER_TASK:-5}" ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$(dirname "$0")/train.py" "$config" --launcher slurm "$@"
