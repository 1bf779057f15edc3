#!/bin/bash
# Trains on several nodes:  sbatch docs/slurm.sh pv3d-voxceleb data/vox.zip
# Submit from the checkout, on a file system that all nodes see. Adapt the #SBATCH lines and `minutes` to your cluster.
#SBATCH --job-name=pv3d
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
set -euo pipefail

cfg=${1:?preset, for example pv3d-voxceleb}
data=${2:?data set, for example data/vox.zip}
minutes=1410  # stop with a checkpoint half an hour before the job's time is up
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# The same command after every start: it continues its unfinished run.
srun .venv/bin/torchrun \
  --nnodes="$SLURM_NNODES" --nproc_per_node=8 \
  --rdzv_id="$SLURM_JOB_ID" --rdzv_backend=c10d --rdzv_endpoint="$head_node:29500" \
  train.py --outdir runs --cfg "$cfg" --data "$data" --batch 32 --max-minutes "$minutes"

# Stopped by the clock and not because it is done: queue the job again.
if (( SECONDS >= minutes * 60 )); then scontrol requeue "$SLURM_JOB_ID"; fi
