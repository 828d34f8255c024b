#!/usr/bin/env bash
# What the paper's own models look at, have inside and withstand, in one command:
#
#   CLIP=CHECKPOINT PHOTOS=DIR IMAGENET=DIR VOC=DIR ADE20K=DIR benchmarks/paper_models.sh
#   benchmarks/paper_models.sh sinks       one stage alone; it wants its own data only
#
#   stage     figures                                                                            wants
#   models    the matched pair as model directories: diffclip convert                            CLIP, DIFFCLIP
#   pictures  Figure 2's pictures: diffclip attend                                               PHOTOS
#   score     the share of relevance inside what the text names: attention_score.py
#   sinks     sinks, negative mass, likeness of heads, lambda by layer: attention_inside.py      IMAGENET
#   attack    accuracy under attack, noise and the other model's attack: fragility.py            IMAGENET
#   voc       dense zero-shot segmentation, mIoU: segmentation.py                                VOC
#   ade20k    likewise                                                                           ADE20K
#
#   CLIP      the authors' CLIP trained on CC12M, and DIFFCLIP their DiffCLIP: whatever `diffclip convert` takes, a file,
#             a directory or hf://OWNER/REPO. DIFFCLIP is hf://hammh0a/DiffCLIP_ViTB16_CC12M unless set. Compare matched
#             pairs alone: models of the same data, epochs and code.
#   PHOTOS    a folder of pictures, NAME.jpg each with NAME.txt, which has a text to look for in each line
#   IMAGENET  ImageNet's validation set in clip_benchmark's layout: diffclip data folder imagenet1k (docs/data.md)
#   VOC       VOCdevkit/VOC2012; ADE20K: ADEChallengeData2016 (segmentation_data.py says where the archives are)
#   OUT       where everything is written (runs/paper-models); a stage that is done is not repeated, so a run that was
#             stopped goes on. Remove a stage's files to repeat it, and take another OUT for other models.
#   DEVICE, BATCH_SIZE, NUM_IMAGES    cuda, 64, 1000 (images of sinks and attack)
#
# Tested on nano models and small data of the same formats (tests/benchmarks/test_paper_models.py). It has not been run
# on the authors' weights, so it claims nothing of them.
set -euo pipefail

HERE=$(dirname "${BASH_SOURCE[0]}")
STAGES=(models pictures score sinks attack voc ade20k)
AUTHORS=hf://hammh0a/DiffCLIP_ViTB16_CC12M
: "${OUT:=runs/paper-models}" "${CLIP:=}" "${DIFFCLIP:=}"
: "${PHOTOS:=}" "${IMAGENET:=}" "${VOC:=}" "${ADE20K:=}"
: "${DEVICE:=cuda}" "${BATCH_SIZE:=64}" "${NUM_IMAGES:=1000}" "${PYTHON:=python3}"

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 2
}

# Shows a command, quoted for the shell, and runs it.
run() {
    printf '%q ' "$@"
    echo
    "$@"
}

# Refuses data that are missing: the variable's name, a file in its folder that must be there, where to get it.
need() {
    [[ -n ${!1} ]] || fail "set $1: $3"
    [[ -e ${!1}/$2 ]] || fail "$1 is ${!1}, which has no $2: $3"
}

check() {
    case $1 in
    models)
        [[ -n $CLIP || -d $OUT/CLIP ]] ||
            fail "set CLIP: the authors' CLIP trained on CC12M, a checkpoint or hf://OWNER/REPO beside ${DIFFCLIP:-$AUTHORS}"
        ;;
    pictures)
        need PHOTOS . "a folder of pictures, NAME.jpg each with a text to look for in each line of NAME.txt"
        compgen -G "$PHOTOS/*.txt" >/dev/null || fail "$PHOTOS has no NAME.txt with the texts of NAME.jpg"
        ;;
    sinks | attack)
        need IMAGENET test/nshards.txt "make it of ImageNet's validation images: \
diffclip data folder imagenet1k --source imagenet/val --data DATA, then IMAGENET=DATA/imagenet1k"
        ;;
    voc)
        need VOC ImageSets/Segmentation/val.txt "VOCdevkit/VOC2012 of \
http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
        ;;
    ade20k)
        need ADE20K objectInfo150.txt "the folder in \
http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
        ;;
    esac
}

# Converts a source unless that was done; the directory comes to be as a whole.
convert() {
    [[ -d $OUT/$1 ]] && return
    echo "$2" >"$OUT/$1.source"
    run diffclip convert "$2" "$OUT/$1"
}

# Refuses to go on with a model of another source, whose figures would be mixed up with those that are there.
check_source() {
    [[ -z $2 || ! -d $OUT/$1 || ! -e $OUT/$1.source || $2 == "$(<"$OUT/$1.source")" ]] ||
        fail "$OUT/$1 was made of $(<"$OUT/$1.source"), not of $2: set another OUT"
}

# Runs a benchmark that writes FILE.json, then FILE.png, unless both are there.
measure() {
    local name=$1 script=$2
    shift 2
    if [[ -e $OUT/$name.json && -e $OUT/$name.png ]]; then
        echo "$name is done: $OUT/$name.json"
        return
    fi
    run "$PYTHON" "$HERE/$script" --model "CLIP=local-dir:$OUT/CLIP" --model "DiffCLIP=local-dir:$OUT/DiffCLIP" \
        --device "$DEVICE" --output "$OUT/$name.json" --overwrite "$@"
}

pictures() {
    local texts picture line options
    mkdir -p "$OUT/pictures"
    for texts in "$PHOTOS"/*.txt; do
        picture=${texts%.txt}.jpg
        [[ -e $picture ]] || fail "there is no $picture, which $texts is of"
        [[ ! -e $OUT/pictures/$(basename "${picture%.jpg}").png ]] || continue
        options=()
        while IFS= read -r line || [[ -n $line ]]; do
            [[ -z $line ]] || options+=(--text "$line")
        done <"$texts"
        run diffclip attend "$picture" "${options[@]}" --colormap jet \
            --model "local-dir:$OUT/CLIP" --model "local-dir:$OUT/DiffCLIP" \
            --output "$OUT/pictures/$(basename "${picture%.jpg}").png"
    done
}

score() {
    if [[ -e $OUT/score.json ]]; then
        echo "score is done: $OUT/score.json"
        return
    fi
    run "$PYTHON" "$HERE/attention_score.py" --model "local-dir:$OUT/CLIP" --model "local-dir:$OUT/DiffCLIP" \
        --method chefer gradcam --num-images "${SCORE_IMAGES:-300}" --output "$OUT/score.json"
}

stage() {
    local images=(--data "$IMAGENET" --num-images "$NUM_IMAGES" --batch-size "$BATCH_SIZE")
    [[ $1 == models || (-d $OUT/CLIP && -d $OUT/DiffCLIP) ]] || fail "there are no models in $OUT yet: $0 models"
    case $1 in
    models)
        convert CLIP "$CLIP"
        convert DiffCLIP "${DIFFCLIP:-$AUTHORS}"
        ;;
    pictures) pictures ;;
    score) score ;;
    sinks) measure sinks attention_inside.py "${images[@]}" ;;
    attack) measure attack fragility.py "${images[@]}" ;;
    voc) measure voc segmentation.py --voc "$VOC" ;;
    ade20k) measure ade20k segmentation.py --ade20k "$ADE20K" ;;
    esac
}

main() {
    local wanted=("$@") name
    ((${#wanted[@]})) || wanted=("${STAGES[@]}")
    check_source CLIP "$CLIP"
    check_source DiffCLIP "$DIFFCLIP"
    for name in "${wanted[@]}"; do
        [[ " ${STAGES[*]} " == *" $name "* ]] || fail "there is no stage $name; there are: ${STAGES[*]}"
        check "$name" # all of them first, before hours of work
    done
    mkdir -p "$OUT"
    for name in "${wanted[@]}"; do
        stage "$name"
    done
}

main "$@"
