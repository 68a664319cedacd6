#!/bin/bash

# Parameters
#SBATCH --account=research
#SBATCH --gpus-per-node=8
#SBATCH --job-name=llama-8b-alpaca
#SBATCH --no-kill
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/demo-20250101T000000-0123abcd/submitit/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
export PYTHONSAFEPATH=1

# command
export SUBMITIT_EXECUTOR=slurm
exec sh -c 'trap : TERM; "$@"; code=$?; n=${SLURM_RESTART_COUNT:-0}; if [ $code -eq 137 ] && [ $n -lt 1000 ]; then case "$(scontrol show job --oneliner "$SLURM_JOB_ID")" in *" Restarts=$n "*) scontrol requeue Incomplete "$SLURM_JOB_ID" && sleep 60;; esac; fi; exit $code' supervisor /opt/venv/bin/python -u -m submitit.core._submit /shared/runs/demo-20250101T000000-0123abcd/submitit
