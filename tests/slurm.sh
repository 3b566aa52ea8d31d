#!/bin/sh
# make check-slurm: a Slurm of one node on the loopback, all of it in a directory that is removed at
# the end; ranks under srun, a job that is preempted, put back into the queue and goes on, an array.
# Needs root (slurmd does).
. "$(dirname "$0")/lib.sh"

for tool in munged mungekey slurmctld slurmd srun sbatch; do
	PATH=$PATH:/usr/sbin command -v $tool > /dev/null || skip_all "no $tool (slurm-wlm, munge)"
done
PATH=$PATH:/usr/sbin
[ "$(id -u)" = 0 ] || skip_all "slurmd runs as root only"
case $(chr-pretrain -V) in *mpi*) ;; *) skip_all "built without MPI" ;; esac

S=$tmp/slurm
host=$(hostname -s)
port=$((20000 + $$ % 20000))
export SLURM_CONF=$S/slurm.conf
mkdir -p "$S/state" "$S/spool" && chmod 755 "$tmp" "$S" && chmod 700 "$S/state"
cat > "$SLURM_CONF" <<END
ClusterName=check
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=$port
SlurmdPort=$((port + 1))
AuthType=auth/munge
AuthInfo=socket=$S/munge.sock
CredType=cred/munge
StateSaveLocation=$S/state
SlurmdSpoolDir=$S/spool
SlurmctldPidFile=$S/slurmctld.pid
SlurmdPidFile=$S/slurmd.pid
SlurmctldLogFile=$S/slurmctld.log
SlurmdLogFile=$S/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=pmix
ReturnToService=2
KillWait=90
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=defer_batch,sched_interval=2,bf_interval=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=90
PartitionName=high Nodes=$host MaxTime=INFINITE State=UP PriorityTier=10
END
pids=
stop_all()
{
	scancel -f --user=root > /dev/null 2>&1
	for pid in $pids; do
		kill "$pid" 2> /dev/null
	done
	for pid in $pids; do
		wait "$pid" 2> /dev/null
	done
	rm -rf "$tmp"
}
trap stop_all EXIT
# start COMMAND...: a daemon of ours, in the foreground of a process of its own
start()
{
	"$@" > "$S/$(basename "$1").out" 2>&1 &
	pids="$! $pids"
}
# soon COMMAND...: it comes true within two minutes, of a machine that may be busy
soon()
{
	for _ in $(seq 120); do
		"$@" > /dev/null 2>&1 && return 0
		sleep 1
	done
	echo "not within two minutes: $*"
	squeue; sinfo; tail -n 5 "$S/slurmctld.log"
	return 1
}
steps() { [ "$(grep -c '"step"' "$1")" -ge "$2" ]; }

mungekey -c -k "$S/munge.key" && chmod 600 "$S/munge.key"
start munged --foreground --force --key-file="$S/munge.key" --socket="$S/munge.sock" \
	--pid-file="$S/munge.pid" \
	--log-file="$S/munge.log" --seed-file="$S/munge.seed"
soon test -S "$S/munge.sock" || { cat "$S/munged.out"; echo "Bail out! no munged"; exit 1; }
start slurmctld -D
start slurmd -D
ok "a node is there" soon sh -c 'sinfo -h -o %t | grep -q idle'

world "$tmp/w"
cd "$tmp/w" || exit 1
train="chr-pretrain -q -c config.json -t tokenizer.json --seq 32"
cat > long <<END
#!/bin/sh
exec $top/scripts/slurm/train.sbatch $train -b 2 --epochs 2000 -o long.out datasets/pretrain.jsonl
END
chmod +x long
ok "a rank" sh -c "srun -n1 $train -j 1 -b 4 -n 4 -o one datasets/pretrain.jsonl > one.log"
ok "two ranks" sh -c "srun -n2 $train -j 1 -b 2 -n 4 -o two datasets/pretrain.jsonl > two.log"
is "are one job" "$(grep -c '"step"' two.log)" 4
# The loss to five places.
last() { tail -1 "$1" | sed 's/.*"loss":\([0-9]*\.[0-9]\{5\}\).*/\1/'; }
is "and come to the same loss" "$(last two.log)" "$(last one.log)"
ok "two ranks that divide the experts" sh \
	-c "srun -n2 $train -j 1 -b 2 -n 4 --expert-parallel 2 -o half datasets/pretrain.jsonl > half.log"
is "come to it too" "$(last half.log)" "$(last one.log)"
status "tasks that MPI does not tie together" 69 srun --mpi=none -n2 chr-score -m model in.jsonl
ok "records of two ranks" sh \
	-c 'chr-score -q -m model in.jsonl > a && srun -n2 chr-score -q -m model in.jsonl > b &&
	head -5 a > a5 && head -5 b | cmp - a5'

# A job of low priority makes room for another, and goes on after it.
job=$(sbatch --parsable --partition=low --ntasks=2 --cpus-per-task=1 --mem-per-cpu=0 \
	--output=long.log --open-mode=append \
	--requeue long)
ok "a job trains" soon steps long.log 3
ok "another comes first" srun --partition=high -n2 -t 1 true
ok "the first has saved" soon sh -c 'ls -d long.out/checkpoint-*'
saved=$(cd long.out && printf '%s\n' checkpoint-* | sort -V | tail -1)
# Slurm holds back what it requeues for two minutes.
ok "and is back in the queue" soon sh \
	-c "squeue -h -j $job -o %T | grep PENDING && scontrol update JobId=$job StartTime=now"
ok "it starts again, from its checkpoint" soon grep \
	-q "\"step\":$((${saved#checkpoint-} + 1))," long.log
ok "it trains" soon steps long.log $((${saved#checkpoint-} + 3))
scancel "$job"
ok "a job that is cancelled saves too" soon sh -c "! squeue -h -j $job | grep -q ."
is "and does not come back" "$(squeue -h)" ""
is "its last step" "$(cd long.out && printf '%s\n' checkpoint-* | sort -V |
	tail -1)" "checkpoint-$(grep -c '"step"' long.log)"
is "every step is there once" "$(sed -n 's/.*"step":\([0-9]*\).*/\1/p' long.log | sort -n |
	uniq -d)" ""

ok "an array" sbatch --wait --array=1-2 --ntasks=1 --cpus-per-task=1 --mem-per-cpu=0 \
	--output=array-%a.log \
	"$top/scripts/slurm/train.sbatch" $train -n 2 -b 2 -s %a -o seed-%a datasets/pretrain.jsonl
ok "of two models" [ -f seed-1/model.safetensors -a -f seed-2/model.safetensors ]
first=$(sbatch --parsable --cpus-per-task=1 --mem-per-cpu=0 --output=dep1.log \
	"$top/scripts/slurm/train.sbatch" \
	$train -n 2 -b 2 -o dep1 datasets/pretrain.jsonl)
ok "a stage after another" sbatch --wait --dependency="afterok:$first" --kill-on-invalid-dep=yes \
	--cpus-per-task=1 \
	--mem-per-cpu=0 --output=dep2.log "$top/scripts/slurm/train.sbatch" chr-sft -q -m dep1 \
	-n 1 -b 2 --seq 64 -o dep2 \
	datasets/chat.jsonl
done_testing
