#!/usr/bin/env bash
# Trains the quickstart system and asks it a handful of texts, never naming the task.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/quickstart}
if [[ ! -f $out/report.json ]]; then
  dynamorouter run quickstart --out "$out" --resume
fi
dynamorouter predict "$out/system" --file examples/texts.jsonl
