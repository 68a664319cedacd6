#!/bin/bash

# Parameters
#SBATCH --account=team
#SBATCH --begin=now+1hour
#SBATCH --comment='50% of $HOME; `date`'
#SBATCH --constraint='[rack1|rack2]'
#SBATCH --cpus-per-task=12
#SBATCH --dependency=afterok:12:34
#SBATCH --exclude=node3
#SBATCH --exclusive
#SBATCH --gpus-per-node=h100:4
#SBATCH --job-name='a job'"'"'s name'
#SBATCH --mail-type=END,FAIL
#SBATCH --mail-user=me@example.org
#SBATCH --mem=400G
#SBATCH --no-kill
#SBATCH --no-requeue
#SBATCH --nodelist='node[1-2]'
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/shared/runs/demo-20250101T000000-0123abcd/submitit/%j_0_log.out
#SBATCH --overcommit
#SBATCH --partition=gpu,preempt
#SBATCH --qos=high
#SBATCH --reservation=maintenance
#SBATCH --signal=USR2@300
#SBATCH --switches=1
#SBATCH --time=1591
#SBATCH --time-min=2:00:00

# setup
export PYTHONSAFEPATH=1
module load cuda
export A=${B}

# command
export SUBMITIT_EXECUTOR=slurm
exec sh -c 'trap : TERM; "$@"; code=$?; n=${SLURM_RESTART_COUNT:-0}; if [ $code -eq 137 ] && [ $n -lt 1000 ]; then case "$(scontrol show job --oneliner "$SLURM_JOB_ID")" in *" Restarts=$n "*) scontrol requeue Incomplete "$SLURM_JOB_ID" && sleep 60;; esac; fi; exit $code' supervisor /opt/venv/bin/python -u -m submitit.core._submit /shared/runs/demo-20250101T000000-0123abcd/submitit
