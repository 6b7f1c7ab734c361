# Write the small world, its index and its searcher to /data. Existing files are left unchanged.
set -eu
python -m searchrl.jobs.small_world_data --data /data --name small-world \
  --seed "$SEED" --train-worlds "$TRAIN_WORLDS" --test-worlds "$TEST_WORLDS"
wanted=$(python -c "import json; print(json.load(open('/data/corpora/small-world/manifest.json'))['key'])")
if [ "$(cat /data/indexes/small-world/built-from 2>/dev/null)" = "$wanted" ]; then
  echo "the index exists already"
  exit 0
fi
python -m services.retriever.build_index --corpus /data/corpora/small-world/corpus.jsonl \
  --output /data/indexes/small-world --kind bm25 --progress json
echo "$wanted" >/data/indexes/small-world/built-from
