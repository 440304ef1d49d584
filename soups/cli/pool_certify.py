"""Keep the certificates of a pool, and release soups of its members by them."""

import contextlib

from soups.cli.merge_options import given_settings, naming_options
from soups.cli.show import say, table, tell
from soups.lazy import jax
from soups.merging import load_yaml, releasing
from soups.merging.members import chosen_members
from soups.names import count_of
from soups.pool import Pool


def certify(options, run) -> int:
    """Keep certificates and look whether they hold; 1 if one does not."""
    pool = Pool(options.pool, must_exist=not options.add)
    if options.add and not options.eval:
        raise ValueError("say how the score is measured: --eval 'python my_eval.py {model}', or module:function")
    new = (options.eval, options.metric, options.at_least, options.at_most, options.of)
    if not options.add and any(one is not None for one in new):
        raise ValueError("--eval, --metric, --at-least, --at-most and --of describe a new certificate: give --add NAME")
    if sum(map(bool, (options.add, options.remove, options.names))) > 1:
        raise ValueError("give one of --add, --remove and members")
    if options.add:
        bounds = {"at_least": options.at_least, "at_most": options.at_most}
        pool.certificates.add(options.add, options.eval, metric=options.metric, of=options.of or (), **bounds)
    if options.remove:
        pool.certificates.remove(options.remove)
    if options.add or options.remove:
        rows = [(one.name, one.bound, ", ".join(one.of) or "all", one.evaluation) for one in pool.certificates.values()]
        table(f"{pool.path}: {count_of(len(rows), 'certificate')}", ("name", "must be", "of", "by"), rows)
        run.made(*pool.certificates)
        return 0
    with measuring(pool, run) as report:
        found = releasing.certify(pool, options.names or None, report=report)
    failed = [
        (what, name) for what, own in found.items() for name in own if not pool.certificates[name].holds(own[name])
    ]
    run.made(*(f"{what}: {name}" for what, name in failed))
    return int(bool(failed))


def release(options, run) -> int:
    """Merge members into the released soup, if all certificates hold."""
    pool = Pool(options.pool, must_exist=True)
    if options.source and any((options.method, options.members, options.base)):
        raise ValueError("--from takes its recipe from what it names: leave out --method, --members and --base")
    members = None
    if options.members:
        chosen, notes = chosen_members([f"{options.pool}:{name}" for name in options.members])
        members = [member.removeprefix(f"{options.pool}:") for member in chosen]
        for note in notes:
            tell(note)
    recipe = {"base": options.base, "seed": options.seed, "source": options.source}
    recipe |= {"settings": {name: one for name, (one,) in given_settings(options, options.places).items()}}
    before = len(pool.releases)
    with measuring(pool, run) as report, naming_options():
        record = releasing.release(pool, members, options.method or "uniform", **recipe, report=report)
    number = pool.releases.names[-1]
    done = "released" if len(pool.releases) > before else "already there:"
    say(f"{done} {number}: {', '.join(record['metadata']['ingredients'])}")
    for note in record["metadata"]["merge"].get("notes", ()):
        tell(note)
    run.made(f"{options.pool}/releases:{number}")
    return 0


def log(options, run) -> int:
    """Print the history of releases, or make one of them again."""
    pool = Pool(options.pool, must_exist=True)
    if options.remake:
        number, out = options.remake
        releasing.remake(pool, number, out)
        say(f"wrote {out}, which is release {number} bit for bit")
        run.made(out)
        return 0
    rows = [_row(number, pool.releases.record(number)) for number in pool.releases]
    columns = ("", "created", "digest", "recipe", "ingredients", "certificates")
    table(f"{pool.path}: {count_of(len(rows), 'release')}", columns, rows)
    run.made(*(f"{options.pool}/releases:{number}" for number in pool.releases))
    return 0


@contextlib.contextmanager
def measuring(pool: Pool, run):
    """Yield what prints a score, while certificates of a pool are measured."""
    if not any(one.given or "{model}" not in one.evaluation for one in pool.certificates.values()):
        jax.config.update("jax_platforms", "cpu")  # accelerators are the commands'

    def report(what, certificate, value):
        holds = "holds" if certificate.holds(value) else "fails"
        say(f"{what}: {certificate.name} is {value:.6g}, must be {certificate.bound}: {holds}")

    run.go_on = "the same command goes on, and measures nothing twice"
    yield report
    run.go_on = ""


def _row(number, record):
    about, created = record["metadata"], record["created"]
    recipe = load_yaml(about["merge"]["recipe"])
    settings = "".join(f", {name} {value}" for name, value in (recipe.get("parameters") or {}).items())
    ingredients = ", ".join(f"{name} ({digest[:12]})" for name, digest in about["ingredients"].items())
    scores = [f"{name} {record['metrics'][name]:.4g} ({bound})" for name, bound in about["certificates"].items()]
    return (
        number,
        created,
        record["digest"][:12],
        f"{about['merge']['method']}{settings}",
        ingredients,
        ", ".join(scores),
    )
