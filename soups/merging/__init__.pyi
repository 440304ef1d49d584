"""List what the room offers, for type checkers and for `soups.lazy.attach`."""

from soups.merging.folder import folder_files as folder_files
from soups.merging.folder import folder_notes as folder_notes
from soups.merging.job import Job as Job
from soups.merging.methods import ELSEWHERE as ELSEWHERE
from soups.merging.methods import REQUIRED as REQUIRED
from soups.merging.methods import find_method as find_method
from soups.merging.methods import methods_of as methods_of
from soups.merging.places import check_place as check_place
from soups.merging.planning import Plan as Plan
from soups.merging.planning import plan as plan
from soups.merging.recipe_file import parse_recipe as parse_recipe
from soups.merging.recipe_file import read_recipe as read_recipe
from soups.merging.record import plan_again as plan_again
from soups.merging.record import read_record as read_record
from soups.merging.run import THREADS as THREADS
from soups.merging.run import merge_to_file as merge_to_file
from soups.merging.run import merge_to_folder as merge_to_folder
from soups.merging.run import merge_to_orbax as merge_to_orbax
from soups.merging.run import merge_to_pool as merge_to_pool
from soups.merging.run import verify_output as verify_output
from soups.merging.sharded import leaf_sharding as leaf_sharding
from soups.merging.sharded import merge_sharded as merge_sharded
from soups.merging.sharded import merged_leaves as merged_leaves
from soups.merging.sources import open_model as open_model
from soups.merging.yaml_text import load_yaml as load_yaml
