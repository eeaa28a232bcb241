"""Parts of a user's own: found by name, kept as text, held to their contracts."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from distributed import Client

from dal import Campaign, plugins
from dal.cli import main
from dal.errors import ClusterError, LabelError, LearnerError, SettingsError
from dal.evidence.stopping import MaxLabels, Verdict, parse, texts_of
from dal.exchange import read_answers, write_batch
from dal.exchange.formats import Format, Line
from dal.learners.learner import Learner
from dal.learners.models import Model, score_block
from dal.loop.campaign import Batch
from dal.plugins import Carried, Slot, Unnameable, find, lent, text_of
from dal.pool import Pool
from dal.replay import TestSet, compare
from dal.scan import Journal, scan
from dal.scan.hosts import prove_score
from dal.scores import Score
from dal.selection.batch import select
from dal.selection.order import row_hash
from dal.selection.strategy import STRATEGIES, Selector, Strategy
from dal.testing import CriterionContract, FormatContract, LearnerContract, ScoreContract, SelectorContract
from tests.pools import three_classes

EXAMPLE = Path(__file__).parent / "plugins"
PART = Slot("part", "dal.parts", ("first", "second"))


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the example package apart, as pip does it for a user: on the path, its entry points are found."""
    target = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(EXAMPLE)], check=True, capture_output=True, timeout=100)
    return target


@pytest.fixture
def example(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the installed example on the path of this test and of the processes that it starts."""
    monkeypatch.syspath_prepend(str(installed))
    yield
    sys.modules.pop("dal_example", None)


@dataclass(frozen=True)
class Weighted:
    power: float
    names: tuple[str, ...] = ()
    other: object = None


class Forgetful:
    def __init__(self, power: float) -> None:
        self._power = power


def function() -> None: ...


# -- one mechanism -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "text"),
    [
        (Fraction, "fractions:Fraction"),
        (function, f"{__name__}:function"),
        (Weighted(2.0), f"{__name__}:Weighted(power=2.0, names=(), other=None)"),
        (Weighted(-1, ("a,b", "c(")), f"{__name__}:Weighted(power=-1, names=('a,b', 'c('), other=None)"),
    ],
)
def test_a_part_is_found_by_the_text_that_names_it(part: object, text: str) -> None:
    assert text_of(part, PART) == text
    assert find(text, PART) == part


@pytest.mark.parametrize(
    ("part", "why"),
    [
        (lambda: 0, "lambda"),
        (Weighted(1.0, other=np.zeros(2)), "parameter other"),
        (Weighted(1.0, other=function), "parameter other"),
        (Forgetful(1.0), "parameter power"),
    ],
)
def test_what_no_text_can_name_is_refused_with_the_reason(part: object, why: str) -> None:
    with pytest.raises(Unnameable, match=why):
        text_of(part, PART)


def test_a_local_class_and_one_of_the_script_that_runs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Local: ...

    with pytest.raises(Unnameable, match="inside a function"):
        text_of(Local(), PART)
    script = type("Script", (), {"__module__": "__main__", "__qualname__": "Script"})
    with pytest.raises(Unnameable, match="script"):
        text_of(script, PART)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("third", "there is no such name"),
        ("no_such_module:thing", "no_such_module"),
        ("fractions:NoSuch", "NoSuch"),
        ("fractions:Fraction(1)", "by name"),
        ("fractions:Fraction(numerator=open)", "cannot be read"),
        ("fractions:Fraction(numerator=1", "cannot be read"),
        ("fractions:Fraction(numerator=1, denominator=0)", "refuses these parameters"),
        (":", "ValueError"),
    ],
)
def test_what_cannot_be_found_is_refused_and_what_there_is_is_listed(text: str, why: str) -> None:
    with pytest.raises(SettingsError) as refusal:
        find(text, PART)
    said = str(refusal.value)
    assert said.startswith("`part` must be one of first, second, `module:object` or an installed plug-in (dal.parts)")
    assert repr(text) in said
    assert why in said


def test_a_text_never_runs_code() -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        find("fractions:Fraction(numerator=__import__('os').getpid())", PART)


def test_a_lent_part_is_found_until_it_is_given_back() -> None:
    part = lambda: 0  # noqa: E731 - what no text can name
    with lent(part) as text:
        assert find(text, PART) is part
        assert text_of(part, PART) == text
        with lent(part) as other:
            assert other != text
    with pytest.raises(SettingsError, match="lambda"):
        find(text, PART)


@pytest.mark.usefixtures("example")
def test_an_entry_point_is_found_by_its_name() -> None:
    import dal_example

    assert find("nearest", Slot("learner", "dal.learners")) is dal_example.nearest
    assert find("quiet_rounds(rounds=5)", Slot("stop", "dal.stopping")) == dal_example.QuietRounds(rounds=5)
    with pytest.raises(SettingsError, match="nearest"):
        find("farthest", Slot("learner", "dal.learners"))


def test_a_name_that_two_packages_give_to_different_objects_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, thing in enumerate(("Fraction", "Decimal")):
        about = tmp_path / f"package{number}-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: package{number}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[dal.parts]\nthing = {thing.lower()}s:{thing}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SettingsError, match="fractions:Fraction"):
        find("thing", PART)


# -- stopping criteria -------------------------------------------------------------------------------------------------


class TestMaxLabels(CriterionContract):
    criterion = MaxLabels(100)


class TestPlateau(CriterionContract):
    criterion = "plateau=0.01,rounds=2,answers=9 and max_rounds=4"


@pytest.mark.usefixtures("example")
class TestQuietRounds(CriterionContract):
    criterion = "dal_example:QuietRounds=2,change=0.05"


@pytest.mark.usefixtures("example")
class TestQuietRoundsByName(CriterionContract):
    criterion = "quiet_rounds(rounds=2) and max_labels=50"


@pytest.mark.usefixtures("example")
def test_a_criterion_of_ones_own_is_read_in_every_way_it_is_written() -> None:
    import dal_example

    expected = dal_example.QuietRounds(rounds=2, change=0.05)
    for text in (
        "quiet_rounds=2,change=0.05",
        "dal_example:QuietRounds=2, change=0.05",
        "dal_example:QuietRounds(rounds=2, change=0.05)",
    ):
        assert parse(text) == expected
    assert texts_of(expected) == ("dal_example:QuietRounds(rounds=2, change=0.05)",)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("fractions:Fraction=1", "judge"),
        ("fractions:Fraction=x", "x"),
        ("fractions:Fraction=1,numerator=2,size=3", "size"),
        ("quiet_rounds=2", "quiet_rounds"),
    ],
)
def test_a_criterion_that_is_none_is_refused(text: str, why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        parse(text)


@dataclass
class Silent:
    """Gives no reason."""

    def judge(self, history: object, labels: int, now_hours: float) -> Verdict:
        return Verdict("silent", stop=False, value=None, threshold=0, reason="")


@dataclass
class Counting:
    """Remembers how often it was asked."""

    seen: list[int] = field(default_factory=list)

    def judge(self, history: object, labels: int, now_hours: float) -> Verdict:
        self.seen.append(labels)
        return Verdict("counting", stop=False, value=len(self.seen), threshold=3, reason="calls")


# -- learners ----------------------------------------------------------------------------------------------------------


class TestLogistic(LearnerContract):
    learner = "logistic"


class TestForest(LearnerContract):
    learner = "forest"


@pytest.mark.usefixtures("example")
class TestNearestByName(LearnerContract):
    learner = "nearest"


@pytest.mark.usefixtures("example")
class TestNearestByPath(LearnerContract):
    learner = "dal_example:nearest"


def seeded(random_state):
    from sklearn.linear_model import SGDClassifier

    return SGDClassifier(loss="log_loss", random_state=random_state)


class TestPresetGivenAsAFunction(LearnerContract):
    learner = seeded


def test_a_preset_of_ones_own_is_given_the_seed() -> None:
    assert Learner.of(seeded, ["a", "b"], random_state=7).estimator.random_state == 7


def unseeded(random_state):
    return seeded(np.random.default_rng().integers(2**31))


def test_a_learner_that_is_no_plug_in_is_refused_by_its_name() -> None:
    with pytest.raises(LearnerError, match=r"dal\.learners"):
        Learner.named("nearest", ["a", "b"])


# -- exchange formats --------------------------------------------------------------------------------------------------


class TestCsv(FormatContract):
    format = "csv"
    suffix = ".csv"


class TestJsonLines(FormatContract):
    format = "jsonl"


class TestParquet(FormatContract):
    format = "parquet"


@pytest.mark.usefixtures("example")
class TestTabbedByName(FormatContract):
    format = "tabbed"


@pytest.mark.usefixtures("example")
class TestTabbedByPath(FormatContract):
    format = "dal_example:Tabbed"


class Forgets(Format):
    """Loses the annotator."""

    def lines(self, path):
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            yield Line(number, *text.split("\t"))

    def write(self, file, sheet, blocks):
        items = [item for block in blocks for item in block]
        said = [(item.asked.record_id, *each[:2], "") for item in items for each in item.known]
        file.write("".join("\t".join(line) + "\n" for line in said).encode())
        return len(said)


def test_a_format_that_is_none_is_refused(tmp_path: Path) -> None:
    from dal.exchange.files import format_of

    with pytest.raises(LabelError, match=r"dal\.formats"):
        format_of(tmp_path / "batch.csv", "tabbed", ())
    with pytest.raises(LabelError, match="lines"):
        format_of(tmp_path / "batch.csv", "collections:Counter", ())


# -- scores ------------------------------------------------------------------------------------------------------------


class TestMargin(ScoreContract):
    score = "margin"


class TestBald(ScoreContract):
    score = "bald"


def certain_of_nothing(probabilities):
    return -((probabilities - 1 / probabilities.shape[1]) ** 2).sum(axis=1)


class TestScoreGivenAsAFunction(ScoreContract):
    score = certain_of_nothing


@pytest.mark.usefixtures("example")
class TestDoubtByName(ScoreContract):
    score = "doubt(power=0.5)"


@pytest.mark.usefixtures("example")
class TestDoubtByPath(ScoreContract):
    score = "dal_example:Doubt"


class Variance:
    """How much the members of a committee differ."""

    takes = "committee"

    def __call__(self, members):
        return np.stack(list(members)).var(axis=0).sum(axis=1)


class TestVariance(ScoreContract):
    score = Variance()


class Shrunk:
    """How unsure the model is of a record that is moved towards the middle."""

    takes = "records"

    def __call__(self, X, model):
        return 1 - model.predict_proba(np.float32(0.9) * X).max(axis=1)


class TestShrunk(ScoreContract):
    score = Shrunk()


@dataclass(frozen=True)
class Powered:
    power: float

    def __call__(self, probabilities):
        return (1 - probabilities.max(axis=1)) ** self.power


def fitted(pool: Pool, codes: np.ndarray) -> Model:
    return Learner.named("logistic", list("abc")).fit(pool.take(np.arange(100)), codes[:100])


@pytest.mark.parametrize("score", [certain_of_nothing, lambda p: 3 * p.min(axis=1) - 7, Shrunk(), Variance()])
def test_a_scan_keeps_the_best_by_a_score_of_ones_own(tmp_path: Path, score: Score) -> None:
    pool, codes = three_classes(tmp_path / "pool.zarr")
    X = pool.take(np.arange(pool.n_rows))
    model = Learner.named("forest", list("abc")).fit(X[:60], codes[:60])
    strategy = Strategy(score, "top", 1)
    found = scan(pool, model, strategy, 30, exclude=np.arange(60)).candidates
    values = score_block(strategy.scorer, model, X).score
    values[:60] = -np.inf
    best = np.lexsort((row_hash(np.arange(2000), 0, 0), -values))[:30]
    np.testing.assert_array_equal(found.rows, np.sort(best))
    np.testing.assert_allclose(found.scores, values[found.rows])


class Odd:
    takes = "anything"

    def __call__(self, probabilities):
        return probabilities[:, 0]


@pytest.mark.parametrize("score", [3, Odd, "fractions:no_such", "no_such_score"])
def test_a_score_that_is_none_is_refused_before_the_scan(score: Score) -> None:
    with pytest.raises(SettingsError, match=r"strategy\.score"):
        Strategy(score, "top")


@pytest.mark.parametrize(
    ("score", "why"),
    [
        (lambda p: p[:, :1], "shape"),
        (lambda p: np.full(len(p), np.nan), "finite"),
        (lambda p: p @ p, "must score"),
    ],
)
def test_a_score_that_returns_none_is_refused_by_its_name(tmp_path: Path, score: Score, why: str) -> None:
    pool, codes = three_classes(tmp_path / "pool.zarr")
    with pytest.raises(LearnerError, match=f"lambda.*{why}"):
        scan(pool, fitted(pool, codes), Strategy(score, "top"), 10)
    with pytest.raises(LearnerError, match=f"lambda.*{why}"):
        Learner.named("logistic", list("abc")).check(4, Strategy(score, "top").scorer)


def test_a_journal_goes_on_under_the_same_score_and_parameters_only(tmp_path: Path) -> None:
    pool, codes = three_classes(tmp_path / "pool.zarr")
    model = fitted(pool, codes)

    def resumed(score: Score) -> int:
        found = scan(pool, model, Strategy(score, "top"), 10, journal=Journal(tmp_path / "journal"))
        return found.summary.spans_resumed

    assert resumed(Powered(1.0)) == 0
    assert resumed(Powered(1.0)) > 0
    assert resumed(Powered(2.0)) == 0
    with pytest.raises(Unnameable, match="lambda"):
        resumed(lambda p: p.max(axis=1))


def test_workers_score_by_ones_own_and_one_that_cannot_import_it_is_named_before_the_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example: None
) -> None:
    import dal_example

    pool, codes = three_classes(tmp_path / "pool.zarr")
    model, strategy = fitted(pool, codes), Strategy(dal_example.Doubt(power=0.5), "top")
    expected = scan(pool, model, strategy, 20)
    with Client(n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0") as client:
        found = scan(pool, model, strategy, 20, client=client)
        np.testing.assert_array_equal(found.candidates.rows, expected.candidates.rows)
        np.testing.assert_array_equal(found.candidates.scores, expected.candidates.scores)

        def gone(packed: bytes) -> object:
            raise ModuleNotFoundError("No module named 'dal_example'")

        # As in a process without the package: what travels is unpacked where it is used.
        monkeypatch.setattr(plugins, "pickle", SimpleNamespace(loads=gone))
        carried = Carried("dal_example:Doubt", b"as it came")
        with pytest.raises(ClusterError, match="dal_example"):
            prove_score(client, carried, 30.0)


# -- selectors ---------------------------------------------------------------------------------------------------------


class TestTop(SelectorContract):
    selector = "top"


class TestFacilityLocation(SelectorContract):
    selector = "facility_location"


class TestBait(SelectorContract):
    selector = "bait"


class TestTypiClust(SelectorContract):
    selector = "typiclust"

    def strategy(self) -> Strategy:
        return Strategy("random", "typiclust")


@pytest.mark.usefixtures("example")
class TestOneAClassByName(SelectorContract):
    selector = "one_a_class"


@pytest.mark.usefixtures("example")
class TestOneAClassByPath(SelectorContract):
    selector = "dal_example:one_a_class"


def every_other(problem, k):
    return np.arange(0, len(problem), 2)[:k]


class TestSelectorGivenAsAFunction(SelectorContract):
    selector = every_other


@pytest.mark.parametrize(
    "selector",
    [
        lambda problem, k: np.zeros(k, int),
        lambda problem, k: np.arange(k + 1),
        lambda problem, k: np.arange(k) - 1,
        lambda problem, k: np.arange(k) / 2,
    ],
)
def test_what_is_no_choice_is_refused_by_the_selectors_name(selector: Selector) -> None:
    with pytest.raises(SettingsError, match="lambda"):
        select(SelectorContract().candidates(), Strategy(selector=selector), 5, np.empty((0, 4), np.float32), 1, 1)


# -- strategies as text ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize(
    ("text", "score", "selector", "shortlist"),
    [
        ("doubt", "doubt", "top", 1),
        ("doubt(power=2)", "doubt(power=2)", "top", 1),
        ("dal_example:Doubt(power=2.0)", "dal_example:Doubt(power=2.0)", "top", 1),
        ("one_a_class", "margin", "one_a_class", 10),
        ("dal_example:one_a_class", "margin", "dal_example:one_a_class", 10),
        ("score=doubt(power=2), selector=one_a_class,shortlist=5", "doubt(power=2)", "one_a_class", 5),
        ("score=entropy", "entropy", "facility_location", 10),
    ],
)
def test_a_strategy_is_read_and_kept_as_text(text: str, score: str, selector: str, shortlist: int) -> None:
    strategy = Strategy.named(text, explore=0.1)
    assert (strategy.score, strategy.selector, strategy.shortlist, strategy.explore) == (
        score,
        selector,
        shortlist,
        0.1,
    )
    assert Strategy.named(strategy.text, explore=0.1) == strategy


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_text_of_a_built_in_strategy_is_its_name(name: str) -> None:
    assert Strategy.named(name).text == name


@pytest.mark.parametrize("text", ["margins", "score=margins", "selector=tops", "shortlist=x", "score=margin,depth=3"])
def test_a_strategy_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"`strategy"):
        Strategy.named(text)


# -- from the command line and from Python -----------------------------------------------------------------------------


def command(*arguments: object) -> str:
    done = CliRunner().invoke(main, [str(each) for each in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.usefixtures("example")
def test_installed_parts_are_used_by_name_on_the_command_line(tmp_path: Path) -> None:
    _, codes = three_classes(tmp_path / "pool.zarr")
    home, file = tmp_path / "campaign", tmp_path / "batch.tsv"
    stop, strategy = "quiet_rounds=2,change=0.5 and max_labels=1000", "score=doubt(power=0.5),selector=one_a_class"
    given = ("--estimator", "nearest", "--stop", stop, "--strategy", strategy)
    command("init", home, tmp_path / "pool.zarr", "--classes", "a,b,c", *given)
    for _ in range(2):
        Campaign.open(home).next_batch()  # dal next would start a cluster for it
        command("label", "export", home, file, "--format", "tabbed")
        rows = [line.split("\t")[0] for line in file.read_text().splitlines()]
        file.write_text("".join(f"{row}\t{'abc'[codes[int(row)]]}\tsubmitted\tann\n" for row in rows))
        assert "100 new" in command("label", "import", home, file, "--format", "tabbed")
    assert "imported before" in command("label", "import", home, file, "--format", "tabbed")
    said = command("status", home)
    assert "quiet_rounds" in said
    assert "estimator nearest" in said
    assert "doubt(power=0.5)" in said
    asked = Campaign.open(home).rounds.batch(2)
    assert len({each.predicted for each in asked}) == 3


@pytest.mark.usefixtures("example")
def test_objects_are_kept_by_their_names_and_found_again(tmp_path: Path) -> None:
    import dal_example

    pool, _ = three_classes(tmp_path / "pool.zarr")
    campaign = Campaign.create(
        tmp_path / "campaign",
        pool,
        list("abc"),
        estimator=dal_example.nearest,
        stop=dal_example.QuietRounds(rounds=2),
        strategy=Strategy(dal_example.Doubt(power=2.0), dal_example.one_a_class, shortlist=4, explore=0.2),
    )
    again = Campaign.open(campaign.directory)
    assert again.settings.stop == ("dal_example:QuietRounds(rounds=2, change=0.01)",)
    assert again.settings.explore == 0.2
    strategy = Strategy.named(again.settings.strategy)
    assert strategy.scorer.part == dal_example.Doubt(power=2.0)
    assert strategy.chooser is dal_example.one_a_class
    batch = again.next_batch()
    assert isinstance(batch, Batch)
    file = tmp_path / "batch.tsv"
    write_batch(again, pool, batch.number, file, file_format=dal_example.Tabbed())
    file.write_text(file.read_text().replace("\t\t\t", "\tb\t\tann"))
    assert read_answers(file, again, pool, "ann", file_format=dal_example.Tabbed).new == len(batch.rows)
    sys.modules.pop("dal_example")
    assert read_answers(file, again, pool, "ann", file_format="dal_example:Tabbed").seen


def test_a_campaign_whose_parts_are_gone_says_so(
    tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, _ = three_classes(tmp_path / "pool.zarr")
    with monkeypatch.context() as there:
        there.syspath_prepend(str(installed))
        Campaign.create(tmp_path / "campaign", pool, list("abc"), estimator="nearest", stop="quiet_rounds")
    sys.modules.pop("dal_example", None)
    importlib.invalidate_caches()
    with pytest.raises(SettingsError, match="'quiet_rounds'"):
        Campaign.open(tmp_path / "campaign").next_batch()


def test_nothing_is_written_where_a_part_cannot_be_named(tmp_path: Path) -> None:
    class Local:
        def judge(self, history: object, labels: int, now_hours: float) -> Verdict:
            return Verdict("local", stop=False, value=0, threshold=1, reason="never")

    pool, _ = three_classes(tmp_path / "pool.zarr")
    with pytest.raises(Unnameable, match="Local"):
        Campaign.create(tmp_path / "campaign", pool, list("abc"), stop=[Local()])
    with pytest.raises(Unnameable, match="lambda"):
        Campaign.create(tmp_path / "campaign", pool, list("abc"), strategy=Strategy(lambda p: p.max(axis=1), "top"))
    assert not (tmp_path / "campaign").exists()


def test_a_lambda_is_replayed_as_a_function_of_a_module_is(tmp_path: Path) -> None:
    pool, codes = three_classes(tmp_path / "pool.zarr")
    test = TestSet(pool.take(np.arange(1500, 2000)), codes[1500:])
    named, unnamed = Strategy(certain_of_nothing, "top"), Strategy(lambda p: certain_of_nothing(p), "top")
    settings = {"batch_size": 20, "rounds": 3, "reserved": np.arange(1500, 2000)}
    found = compare(pool, codes, test, list("abc"), [named, unnamed, "random"], **settings)
    one, other, random = (found.of(each)[0] for each in found.strategies)
    assert [each.tolist() for each in one.batches] == [each.tolist() for each in other.batches]
    assert one.batches[2].tolist() != random.batches[2].tolist()
    assert "certain_of_nothing" in one.strategy
    assert "lambda" in other.strategy
    with pytest.raises(SettingsError, match="different names"):
        compare(pool, codes, test, list("abc"), [unnamed, Strategy(lambda p: p.max(axis=1), "top")], **settings)


# -- contracts fail where they are broken ------------------------------------------------------------------------------


def upside_down(probabilities):
    return probabilities.max(axis=1)


def by_rank(probabilities):
    return np.argsort(np.argsort(-probabilities.max(axis=1))) / len(probabilities)


def drawn(probabilities):
    return np.random.default_rng().random(len(probabilities))


def drawing(problem, k):
    return np.random.default_rng().permutation(len(problem))[:k]


def nothing(problem, k):
    return []


@pytest.mark.parametrize(
    ("contract", "part", "test"),
    [
        (CriterionContract, {"criterion": Silent()}, "test_says_its_value_its_threshold_and_its_reason"),
        (CriterionContract, {"criterion": Counting()}, "test_is_a_pure_function_of_the_history"),
        (ScoreContract, {"score": upside_down}, "test_asks_a_doubtful_record_before_a_sure_one"),
        (ScoreContract, {"score": by_rank}, "test_does_not_depend_on_the_other_records_of_a_block"),
        (ScoreContract, {"score": drawn}, "test_is_pure"),
        (SelectorContract, {"selector": drawing}, "test_is_pure"),
        (SelectorContract, {"selector": drawing}, "test_does_not_depend_on_the_order_of_the_candidates"),
        (SelectorContract, {"selector": nothing}, "test_chooses_distinct_candidates_and_no_more_than_asked_for"),
        (LearnerContract, {"learner": unseeded}, "test_gives_the_same_model_under_the_same_seed"),
        (FormatContract, {"format": Forgets}, "test_answers_come_back"),
        (FormatContract, {"format": Forgets}, "test_records_without_an_answer_come_back_pending"),
    ],
)
def test_a_contract_fails_for_a_part_that_breaks_it(contract: type, part: dict[str, object], test: str) -> None:
    broken = type("Broken", (contract,), part)
    with pytest.raises(AssertionError):
        getattr(broken(), test)()


def test_nothing_is_looked_up_for_what_is_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins.metadata, "entry_points", None)
    parse("max_labels=5 and plateau")
    Learner.named("logistic", ["a", "b"])


# -- strategies of other libraries -------------------------------------------------------------------------------------


def classifier_margin(classifier, X):
    """As modAL computes it: the difference of the two largest probabilities."""
    largest = -np.partition(-classifier.predict_proba(X), 1, axis=1)
    return largest[:, 0] - largest[:, 1]


def uncertainty_scores(probas, method):
    """As scikit-activeml computes its entropy, in nats."""
    assert method == "entropy"
    return -(probas * np.log(probas)).sum(axis=1)


def elsewhere(module: str, function: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a function with the same signature in the place of a library that is not installed."""
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        package, _, name = module.partition(".")
        inner = SimpleNamespace(**{function.__name__: function})
        monkeypatch.setitem(sys.modules, package, SimpleNamespace(**{name: inner}))
        monkeypatch.setitem(sys.modules, module, inner)


def test_strategies_of_other_libraries_are_wrapped_as_the_documentation_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere("modAL.uncertainty", classifier_margin, monkeypatch)
    elsewhere("skactiveml.pool", uncertainty_scores, monkeypatch)
    page = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
    (block,) = (
        text for text in re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE) if "modAL" in text
    )
    wrapped: dict[str, type] = {}
    exec(block, wrapped)
    pool, classes = three_classes(tmp_path / "pool.zarr")
    model = Learner.named("logistic", ["red", "green", "blue"]).fit(pool.read(0, 60), classes[:60])
    for name, own in (("ModalMargin", "margin"), ("ActivemlEntropy", "entropy")):
        found, expected = (
            scan(pool, model, Strategy(score=score, selector="top"), 30).candidates for score in (wrapped[name](), own)
        )
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6)
