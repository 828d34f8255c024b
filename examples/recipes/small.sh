# shellcheck shell=bash
# SMALL=1: a recipe's stages on the embedded emoji, with the nano models on one process, in minutes and without a GPU.
# Sourced by recipe.sh. A server on this machine stands for the web.
: "${OUT:=runs/$RUNS-small}" "${SHARD_SIZE:=500}" "${DOWNLOADERS:=1}" "${THREADS:=4}"
: "${DATA:=$OUT/shards}" "${LIST:=$OUT/list.tsv}" "${EVAL:=$OUT/eval}"
: "${GPUS:=1}" "${GLOBAL_BATCH:=64}" "${WORKERS:=1}" "${EPOCHS:=2}"
# shellcheck disable=SC2034  # recipe.sh reads it
PRECISION=fp32
EMOJI=$(dirname "${BASH_SOURCE[0]}")/../emoji

sized() {
    local size
    for size in B-16 L-14 H-14; do
        [[ $1 != *-$size* ]] || echo "${1/$size/nano}"
    done
}

# Serves Noto's emoji on a free port until the recipe ends, and lists their addresses and a dead one.
serve_and_list() {
    local images=$OUT/images port name
    [[ -z ${DRY_RUN:-} ]] || return 0
    mkdir -p "$images"
    tar xzf "$EMOJI/data/train/noto.tar" -C "$images"
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    python3 -m http.server "$port" --bind 127.0.0.1 --directory "$images" >"$OUT/server.log" 2>&1 &
    # shellcheck disable=SC2064  # the server's number is to be that of now
    trap "kill $!" EXIT
    until (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
        kill -0 $! || fail "the server did not start; see $OUT/server.log"
        sleep 0.2
    done
    for name in "$images"/*_label.webp "$images/gone.webp"; do
        list_line "http://127.0.0.1:$port/$(basename "$name")" "$(cat "${name%.webp}.txt" 2>/dev/null || echo gone)"
    done >"$LIST"
}

list_line() {
    case $LIST_HEADER in
    url*) printf '%s\t%s\n' "$1" "$2" ;;
    *) printf '%s\t%s\n' "$2" "$1" ;;
    esac
}

# The paper's data sets, played by a few emoji of each class.
small_suite() {
    [[ ! -d $EVAL ]] || return 0
    rm -rf "$EVAL.new"
    run env PYTHONPATH="$EMOJI" python3 -c \
        'import pathlib, sys, paper_suite; paper_suite.build(pathlib.Path(sys.argv[1]), limit=10)' "$EVAL.new"
    run mv "$EVAL.new" "$EVAL"
}
