#!/bin/bash

# Parameters
#SBATCH --job-name=run
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/demo-20250101T000000-0123abcd/submitit/%j_0_log.out
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=1440

# setup
export PYTHONSAFEPATH=1

# command
export SUBMITIT_EXECUTOR=slurm
exec sh -c 'trap : TERM; "$@"; code=$?; n=${SLURM_RESTART_COUNT:-0}; if [ $code -eq 137 ] && [ $n -lt 1000 ]; then case "$(scontrol show job --oneliner "$SLURM_JOB_ID")" in *" Restarts=$n "*) scontrol requeue Incomplete "$SLURM_JOB_ID" && sleep 60;; esac; fi; exit $code' supervisor /opt/venv/bin/python -u -m submitit.core._submit /shared/runs/demo-20250101T000000-0123abcd/submitit
