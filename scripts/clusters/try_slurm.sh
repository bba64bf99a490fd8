#!/bin/bash
# Run the recipe of docs/clusters.md on a real SLURM of this machine alone: a job that gets SIGUSR1 amid a video queues
# again and finishes it. As root, with Debian's packages slurmctld, slurmd, slurm-client and munge, and qvg on PATH.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
chmod 755 "$work"
pids=()
end() {
  kill "${pids[@]}" 2>/dev/null || true
  wait
  rm -rf "$work"
}
trap end EXIT

sed -n '/^```bash title="array.sh"/,/^```$/p' "$root/docs/clusters.md" | sed '1d;$d' >"$work/array.sh"
printf '{"prompt": "a large red ball bounces on grass", "seed": %d}\n' 0 1 >"$work/prompts.jsonl"

head -c 128 /dev/urandom >"$work/munge.key"
chmod 600 "$work/munge.key"
cat >"$work/slurm.conf" <<CONF
ClusterName=try
SlurmctldHost=$(hostname -s)(127.0.0.1)
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmctldPort=26817
SlurmdPort=26818
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket
CredType=cred/munge
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
SchedulerParameters=sched_interval=1
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$(nproc)
PartitionName=try Nodes=ALL Default=YES MaxTime=INFINITE
CONF
mkdir "$work/state" "$work/spool"
export SLURM_CONF=$work/slurm.conf

munged --force --foreground --num-threads=1 --key-file="$work/munge.key" --socket="$work/munge.socket" \
  --pid-file="$work/munged.pid" --log-file="$work/munged.log" --seed-file="$work/munged.seed" &
pids+=($!)
for _ in $(seq 100); do [ -S "$work/munge.socket" ] && break; sleep 0.1; done
slurmctld -D &
pids+=($!)
slurmd -D &
pids+=($!)
for _ in $(seq 300); do sinfo -h -o %T 2>/dev/null | grep -q idle && break; sleep 0.2; done
sinfo

job=$(sbatch --parsable --array=1 --gres=none --cpus-per-task=1 --output="$work/%a.log" "$work/array.sh" \
  "$work/prompts.jsonl" --pocket --seconds 5 --out "$work/videos")
run=$work/videos/self-forcing/a-large-red-ball-bounces-on-grass-seed0
for _ in $(seq 1500); do [ -e "$run/state/00001.json" ] && break; sleep 0.2; done
scancel --batch --signal=USR1 "${job}_1"
for _ in $(seq 3000); do
  [ -z "$(squeue -h -j "$job")" ] && break
  sleep 0.2
done
cat "$work/1.log"
scontrol show job "$job" | grep -E "Restarts|ExitCode|JobState"
scontrol show job "$job" | grep -q "Restarts=1"
grep -q "resuming after chunk" "$work/1.log"
[ "$(find "$work/videos" -name video.mp4 | wc -l)" -eq 2 ]
[ "$(grep -c '"status": "complete"' "$work/videos/self-forcing/prompts-1-of-1.json")" -eq 3 ]
echo "the array queued again and finished"
