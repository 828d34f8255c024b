# shellcheck shell=bash
# The stages of every recipe, each a command of a host. Sourced by cc3m.sh, cc12m.sh and scaling.sh, which set
#   RUNS, SET                   the recipe's name, and its training data's
#   LIST_HEADER, LAST_SHARD     the columns of the data's list of addresses; the last shard of the whole list
#   PAPER_SAMPLES, PAPER_GPUS   pairs that the paper had of it, and what it trained them on
#   PAPER_ROWS                  the paper's rows, by model
#   MODELS, PRECISION, FLAGS    the recipe's models; the trainer's precision, and its arguments besides the paper's
#   CHECKPOINTING               not empty: --grad-checkpointing
# README.md lists the variables that a user may set.

HUB='https://huggingface.co/datasets/clip-benchmark/wds_{dataset}/tree/main'

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 2
}

# Shows a command, quoted for the shell, and runs it unless DRY_RUN is set.
run() {
    printf '%q ' "$@"
    echo
    [[ -n ${DRY_RUN:-} ]] || "$@"
}

# The model that a recipe's MODEL stands for: small.sh takes another.
sized() {
    echo "$1"
}

check_model() {
    [[ -n ${1:-} ]] || fail "name a model: ${MODELS[*]}"
    [[ " ${MODELS[*]} " == *" $1 "* ]] || fail "$1 is no model of this recipe; it has: ${MODELS[*]}"
}

# The list of addresses as img2dataset reads it: every field quoted. As published, a caption that begins with a
# quotation mark would swallow the lines behind it, up to the next mark.
quoted_list() {
    sed -e 's/\r//g; s/"/""/g; s/\t/"\t"/; s/^/"/; s/$/"/' "$1" | sed -e "1i $LIST_HEADER"
}

data() {
    [[ -z ${SMALL:-} ]] || serve_and_list
    if [[ -z ${DRY_RUN:-} ]]; then
        [[ -f $LIST ]] || fail "there is no list of addresses $LIST; README.md says where it comes from"
        mkdir -p "$OUT"
        quoted_list "$LIST" >"$OUT/.addresses.tsv"
        mv "$OUT/.addresses.tsv" "$OUT/addresses.tsv"
    fi
    # its image library asks the network for newer versions of itself
    export NO_ALBUMENTATIONS_UPDATE=1
    run "$IMG2DATASET" --url_list "$OUT/addresses.tsv" --input_format tsv \
        --url_col url --caption_col caption --output_format webdataset --output_folder "$DATA" \
        --number_sample_per_shard "$SHARD_SIZE" --resize_mode keep_ratio --image_size 224 --resize_only_if_bigger True \
        --encode_quality 95 --processes_count "$DOWNLOADERS" --thread_count "$THREADS" \
        "${ARGUMENTS[@]}"
}

# Refuses shards that img2dataset has not finished, which have no statistics yet.
check_shards() {
    local shard
    for shard in "$DATA"/*.tar; do
        [[ -e $shard ]] || fail "there are no shards in $DATA; make them with: $0 data"
        [[ -n ${SAMPLES:-} || -e ${shard%.tar}_stats.json ]] ||
            fail "$shard is not finished; go on with: $0 data (or set SAMPLES, if the shards come from elsewhere)"
    done
}

# Pairs in the shards: those that img2dataset fetched.
count_samples() {
    grep -ho '"successes": [0-9]*' "$DATA"/*_stats.json | awk '{ n += $2 } END { print n }'
}

# Sets what follows from the shards and the machines: samples, shards, batch (pairs a process), warmup (steps).
derive() {
    if [[ -n ${DRY_RUN:-} && ! -d $DATA ]]; then
        echo "there are no shards in $DATA yet, so these are the paper's pairs and all shards" >&2
        samples=${SAMPLES:-$PAPER_SAMPLES} shards="$DATA/{00000..$LAST_SHARD}.tar"
    else
        check_shards
        samples=${SAMPLES:-$(count_samples)}
        local all=("$DATA"/*.tar)
        shards="$DATA/{00000..$(basename "${all[-1]}" .tar)}.tar"
    fi
    local parts=$((NODES * GPUS * ACCUM))
    ((GLOBAL_BATCH % parts == 0)) ||
        fail "a batch of $GLOBAL_BATCH cannot be shared by NODES x GPUS x ACCUM = $NODES x $GPUS x $ACCUM"
    batch=$((GLOBAL_BATCH / parts))
    # one epoch, as open_clip_train counts it: full batches, as many for each worker process, both rounded up
    local micro=$((GLOBAL_BATCH / ACCUM))
    local batches=$(((samples + micro - 1) / micro))
    warmup=$(((batches + WORKERS - 1) / WORKERS * WORKERS / ACCUM))
}

# Sets launch, torchrun's own arguments for the trainer.
rendezvous() {
    launch=(--standalone --nproc-per-node "$GPUS")
    ((NODES > 1)) || return 0
    [[ -n ${RDZV:-} ]] || fail "NODES is $NODES: set RDZV to HOST:PORT, HOST being the first node, on all of them"
    launch=(--nnodes "$NODES" --nproc-per-node "$GPUS" --rdzv-backend c10d --rdzv-endpoint "$RDZV"
        --rdzv-id "${SLURM_JOB_ID:-$SET}")
}

train() {
    local model samples shards batch warmup launch options=()
    model=$(sized "$1")
    derive
    rendezvous
    [[ -z ${IMAGENET_VAL:-} ]] || options+=(--imagenet-val "$IMAGENET_VAL" --zeroshot-frequency 1)
    [[ -z $CHECKPOINTING ]] || options+=(--grad-checkpointing)
    run torchrun "${launch[@]}" --no-python -- open_clip_train --model "$model" --name "$SET" \
        --logs "$OUT/logs/$model" --dataset-type webdataset --train-data "$shards" --train-num-samples "$samples" \
        --batch-size "$batch" --accum-freq "$ACCUM" --workers "$WORKERS" --epochs "$EPOCHS" \
        --warmup "$warmup" --lr-scheduler cosine --lr 5e-4 --wd 0.5 --beta1 0.9 --beta2 0.98 --eps 1e-8 \
        --precision "$PRECISION" --local-loss --seed "$SEED" \
        --aug-cfg use_timm=True 'scale=(0.5,1.0)' --image-interpolation bilinear \
        --image-mean 0.485 0.456 0.406 --image-std 0.229 0.224 0.225 \
        --save-frequency 1 --resume latest --report-to tensorboard --log-every-n-steps 20 \
        "${options[@]}" "${FLAGS[@]}" "${ARGUMENTS[@]}"
}

evaluate() {
    local model roots=(--data "$EVAL")
    model=$(sized "$1")
    if [[ -n ${SMALL:-} ]]; then small_suite; else roots+=(--data "$HUB"); fi
    run torchrun --standalone --nproc-per-node "$GPUS" --no-python -- diffclip evaluate \
        --model "$model,$OUT/logs/$model/$SET/checkpoints/epoch_$EPOCHS.pt" \
        "${roots[@]}" --output "$OUT/results" "${ARGUMENTS[@]}"
}

# Beside the paper's own numbers, where it has a row of the model.
report() {
    local model found match=()
    for model in "${!PAPER_ROWS[@]}"; do
        found=("$OUT/results/${model}_${SET}_epoch_$EPOCHS-"*)
        [[ ! -d ${found[0]} ]] || match+=(--match "$model $SET epoch_$EPOCHS=${PAPER_ROWS[$model]}")
    done
    run diffclip report "$OUT/results" --output "$OUT/report" --overwrite "${match[@]}" \
        "${ARGUMENTS[@]}"
}

main() {
    local model
    case ${1:-} in
    data | report)
        ARGUMENTS=("${@:2}")
        "$1"
        ;;
    train | evaluate)
        check_model "${2:-}"
        ARGUMENTS=("${@:3}")
        "$1" "$2"
        ;;
    all)
        ARGUMENTS=()
        data
        for model in "${MODELS[@]}"; do
            train "$model"
            evaluate "$model"
        done
        report
        ;;
    *) fail "usage: $0 data | train MODEL | evaluate MODEL | report | all [arguments of the stage's command]" ;;
    esac
}

[[ -z ${SMALL:-} ]] || source "$(dirname "${BASH_SOURCE[0]}")/small.sh"

: "${OUT:=runs/$RUNS}" "${DATA:=data/$SET}" "${LIST:=data/$SET.tsv}" "${EVAL:=data/eval}"
: "${IMG2DATASET:=img2dataset}" "${SHARD_SIZE:=10000}" "${DOWNLOADERS:=16}" "${THREADS:=64}"
: "${NODES:=1}" "${GPUS:=$PAPER_GPUS}" "${ACCUM:=1}" "${WORKERS:=8}"
: "${GLOBAL_BATCH:=4096}" "${EPOCHS:=40}" "${SEED:=0}"

main "$@"
