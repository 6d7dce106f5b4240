"""Why mutants may live: patterns of changes, each with the reason that stands in the docs."""

import re
from dataclasses import dataclass
from fnmatch import fnmatch

from .survivors import Survivor


@dataclass(frozen=True)
class Reason:
    """A kind of mutant that no test needs to see.

    Attributes:
        where: file and function that it is about, `*` for any.
        change: pattern to be found in `old -> new`.
        why: in one sentence, without a full stop.
    """

    where: str
    change: str
    why: str

    def explains(self, one: Survivor) -> bool:
        """Whether a survivor is of this kind."""
        place = f"{one.file}:{one.function}"
        return fnmatch(place, self.where) and bool(
            re.search(self.change, f"{one.old} -> {one.new}")
        )


ON_A_GPU = "the CPU is where it lies anyway; on a GPU it does not"
WHOLE = "numpy and torch make whole numbers of whole numbers, and none index nothing"
AS_FALSE = "only asked whether it is true, and None is not"
REPLACED = "every step puts its own in its place before it is read"
NONE_BUILT = "of a step that builds nothing, where nothing reads it"
NEGATIVE = "any negative number says that there is none"
LAST_OF_TWO = "the last of two dimensions"
THIRD_OF_FOUR = "the third of four dimensions either way"
ZERO = "None is 0 to `nan_to_num`"
AMPLE = "what it gives back is many times what rounding takes"
UNPOOLED = "the one method whose sums go on pools nothing"
IN_ORDER = "torch leaves equals in their order on a CPU in any case; on a GPU it does not"

REASONS = (
    Reason("*", r"strict=False\).* -> ", "what `zip` does by itself"),
    Reason("*", r"strict=True\).* -> .*(strict=\w+|, )\)", "lists of equal length"),
    # Devices: tests of the CPU cannot tell, where no `meta` tensor can stand in for a GPU's.
    Reason("*page_metadata/check.py:find_mismatches", r"device=units\.device", ON_A_GPU),
    Reason("*planner.py:StepPlan.__init__", r"\.to\(None\)", ON_A_GPU),
    Reason(
        "*planner.py:StepPlan._with_goal",
        r"-> torch\.tensor\(\w+, (dtype=torch\.int32, )?(device=None)?\)",
        ON_A_GPU,
    ),
    Reason("*certificate.py:lse_of_read", r"device=q\.device", ON_A_GPU),
    Reason("*indexing.py:StepIndex.*", r"\.to\(None\)", ON_A_GPU),
    Reason("*residual.py:*", r"device=\w+\.device|skips\.to\(", ON_A_GPU),
    Reason("*quest_int8.py:min_max_int8", r"device=keys\.device", ON_A_GPU),
    Reason("*quest_int8.py:min_max_int8", r"/ signs( |$)", "times and over 1 and -1 are the same"),
    Reason(
        "*selection/apportion.py:*",
        r"device=\w+\.device.* -> (?!.*device=\w+\.device)",
        ON_A_GPU,
    ),
    Reason("*selection/pyramidkv.py:*", r"device=there\.device", ON_A_GPU),
    Reason("*views/weighing.py:*", r"device=[\w.]+\.device", ON_A_GPU),
    # Views.
    Reason("*selection/apportion.py:*", r"stable=True", IN_ORDER),
    Reason("*views/request_view.py:RequestView._keep", r"stable=True", IN_ORDER),
    Reason("*residual.py:by_cluster", r"stable=True", IN_ORDER),
    Reason("*residual.py:by_cluster", r"sum\(\+2\)|argsort\(stable", "of three dimensions or four"),
    Reason("*selection/*.py:*", r"(sum|sort)\(-1\).*\(\+1\)", LAST_OF_TWO),
    Reason("*views/request_view.py:*", r"sum\(-1\).*sum\(\+1\)", LAST_OF_TWO),
    Reason(
        "*views/weighing.py:_shares",
        r"per_token = |size = max|parts\[0\]|whole is None",
        "how large blocks are, and whether one is made twice, changes no result",
    ),
    Reason("*apportion.py:_blocks_of_a_layer", r"block\) \+ 2", "a block more holds nothing"),
    Reason("*views/attention.py:shares_of", r"nan_to_num_\(None", ZERO),
    Reason("*views/layer_view.py:LayerView.pack", r"cumsum\(\+1", LAST_OF_TWO),
    Reason("*views/request_view.py:RequestView.weigh", r"listed = torch\.arange", WHOLE),
    Reason(
        "*views/request_view.py:RequestView.weigh",
        r"mass = .*or True",
        "it is told to nobody who did not ask",
    ),
    Reason("*views/weighing.py:_shares", r"beside\), None\)", "what lies further is cut off again"),
    Reason("*views/weighing.py:weigh_heads", r"pooling >= 1", "over itself a token is itself"),
    Reason("*views/weighing.py:weigh_heads", r"pooling > 2", "pooling is odd"),
    Reason(
        "*views/weighing.py:_normalisers",
        r"amax\(None\)",
        "what is taken off above the line is taken off below it",
    ),
    Reason("*views/weighing.py:_normalisers", r"total, 2\.0", "of no tokens all shares are 0"),
    Reason("*views/weighing.py:_finite", r"isinf\(\), 1\.0", "of no tokens all shares are 0"),
    Reason("*views/layer_view.py:LayerView.lying", r"and False", "nothing is below 0 there"),
    Reason("*views/queries.py:LastQueries.add", r"< first <=", "it begins there either way"),
    Reason(
        "*views/queries.py:LastQueries.add", r"end \+ begin == 1", "the other branch does the same"
    ),
    Reason("*views/request_view.py:RequestView.__init__", r"self\._length = ", REPLACED),
    Reason("*views/request_view.py:RequestView.weigh", r"known, None, length", UNPOOLED),
    Reason("*views/request_view.py:RequestView._scored", r"pooling = 1 if .*False", UNPOOLED),
    Reason("*views/request_view.py:RequestView.settle", r"strict=", "lists of equal length"),
    Reason("*views/stretches.py:*", r"dtype=bool|np\.zeros\(total, \)|astype", WHOLE),
    Reason("*planner.py:HostPlan.__init__", r"np\.array\(narrowed", "numpy makes bools of bools"),
    Reason("*request_table.py:RequestTable.__init__", r"self\.orders = None", AS_FALSE),
    Reason("*request_table.py:RequestTable.__init__", r'= ""', AS_FALSE),
    # Types of numbers.
    Reason("*planner.py:HostPlan.__init__", r"self\._dense_layers = .*np\.int64", WHOLE),
    Reason("*planner.py:*", r"dtype=bool\).* -> .*\(\[", "numpy makes bools of bools"),
    Reason(
        "*planner.py:StepPlan.needed_units", r"/ whole$", "cut to a whole number where it is read"
    ),
    Reason(
        "*request_table.py:RequestTable.is_decode", r"np\.int64", "rows are exact as floats, too"
    ),
    Reason("*indexing.py:StepIndex.begin_step", r"np\.full.* -> .*-1, (dtype=None)?\)", WHOLE),
    Reason("*indexing.py:StepIndex._note", r"self\._(skips|targets) = .*dtype=torch", WHOLE),
    Reason("*records.py:SegmentRecords.*", r"np\.(full|fromiter)\(.*np\.int64.* -> ", WHOLE),
    Reason("*records.py:SegmentRecords.__init__", r"np\.zeros\(", "steps are exact as floats, too"),
    # What stands for nothing.
    Reason("*planner.py:StepPlan._group", r"records = None if name", "no method is called None"),
    Reason("*indexing.py:StepIndex.__init__", r"self\._(slots|skips|targets|rows|table)", REPLACED),
    Reason("*indexing.py:StepIndex._note", r"else torch\.empty\(", NONE_BUILT),
    Reason("*indexing.py:StepIndex.begin_step", r"np\.full.* -2, ", NEGATIVE),
    Reason("*indexing.py:StepIndex.begin_step", r"pages >=? [01]", "page 0 ends no segment"),
    Reason("*records.py:SegmentRecords.*", r"-> .*-2", NEGATIVE),
    Reason("*check.py:find_mismatches", r"or True", "of no units nothing differs"),
    Reason("*guard.py:HeldAnswer.__init__", r"= False -> .*= None", AS_FALSE),
    Reason("*guard.py:_read", r"more_body", AS_FALSE),
    Reason("*results.py:Results.__init__", r"= False -> .*= None", AS_FALSE),
    Reason("*config/parse.py:parse_request_options", r"quote=None", AS_FALSE),
    Reason("*echo.py:take_report", r'"stream", None', AS_FALSE),
    Reason(
        "*guard.py:RequestGuard.__call__", r"or True", "no body is no JSON, which is not refused"
    ),
    Reason("*guard.py:*", r'-> .*b?"XXXX"', "begins no path, no refusal and no name of ours"),
    Reason("*residual.py:build", r"nan_to_num\(None", ZERO),
    Reason(
        "*residual.py:build",
        r"\.to\(None\)",
        "parity tests compare devices' records of 16-bit keys",
    ),
    Reason("*residual.py:_coded", r"shapes\(dim, None\)", "codes of keys know no values"),
    Reason("*residual.py:_coded", r"books, None\)", "what builds a record reads no table"),
    Reason("*residual.py:quantised", r"scale >= 0", "what is no number is 0 in eight bits"),
    Reason("*residual.py:quantised", r"scale, 2\)", "zeros are zeros, whatever divides them"),
    # Numbers of which only the order, the sign or the place counts.
    Reason(
        "*records.py:SegmentRecords.*", r"self\._step (= 1|\+= 2)", "only the order of steps counts"
    ),
    Reason("*config/pages.py:check_chunks", r"tokens >= 0", "nothing ends a page"),
    Reason("*cpu_defaults.py:cpu_defaults", r"or 1\)", "less than what it is compared with"),
    Reason(
        "*requests.py:check_fields",
        r"-> if value is None and",
        "None and what is left out keep every rule",
    ),
    Reason("*records.py:SegmentRecords.reserve", r"missing >= 0", "none of them give way"),
    Reason("*records.py:SegmentRecords.reserve", r'"STABLE"', "numpy takes either case"),
    Reason("*check.py:_excess", r"- torch\.where\(gap\.isnan", "what is no number stays none"),
    Reason("selection/*.py:m*", r"dim=-2\).*dim=\+2\)", THIRD_OF_FOUR),
    Reason("*shadowkv.py:_finite", r"nan_to_num\(None", ZERO),
    Reason("*shadowkv.py:*", r"clamp\(min=1\)", "a row without candidates keeps everything"),
    Reason("*shadowkv.py:*", r"places <=? [01]", "unit 0 comes first where it is chosen"),
    Reason(
        "*shadowkv.py:*", r"scatter_.* -> .*(or True|\[\+1\]|\[-2\])", "no places, no scattering"
    ),
    Reason("*shadowkv.py:*", r"landmarks\(.*, \)", "a chunk is what `landmarks` takes by itself"),
    Reason("*:HeldScores.load", r"shape\[-1\].*shape\[\+1\]", LAST_OF_TWO),
    Reason("*summary.py:ranking", r"-> sign = (-2|-1 if .* else 2)", "a sign, no size"),
    Reason("*summary.py:ranking", r"key=str\) -> ", "the order of what is equal in every figure"),
    Reason("*certificate.py:_whole", r"\.to\(None\)", "true is 1 beside numbers"),
    Reason("*certificate.py:mass_floor", r"nan_to_num\(None", ZERO),
    Reason("*certificate.py:lse_of_read", r"(logsumexp|amax)\(\+1\)", LAST_OF_TWO),
    Reason("*certificate.py:coded_ceilings", r"start <= span", "an empty span holds no token"),
    Reason("*certificate.py:read_units", r"width \+ 2", "columns beyond the units are cut off"),
    Reason("selection/*.py:*", r"(unbind|amax)\(\+2\)", THIRD_OF_FOUR),
    Reason("*mean_std.py:furthest", r"^(lost|terms|mean_lost)", AMPLE),
    Reason(
        "*two_level.py:_scores",
        r"begin\.clamp\(max=units ",
        "a batch whose candidates begin there looks at no page",
    ),
    Reason(
        "*two_level.py:TwoLevelExact.score",
        r"clamp\(0, (None|.* \+ 1)?\)",
        "no more are ranked than there are",
    ),
    Reason(
        "*two_level.py:TwoLevelExact.score", r"sort\(descending", "the last dimension by itself"
    ),
    Reason("*two_level.py:_scores", r"units \+ 2", "columns beyond the units are cut off"),
    Reason("*two_level.py:_best_segments", r"value=-2", NEGATIVE),
    Reason("*two_level.py:_best_segments", r"sum\(\+1\)", LAST_OF_TWO),
    Reason("*two_level.py:_best_segments", r"not chosen\.shape", "no places, no scattering"),
    Reason(
        "*two_level.py:_best_segments",
        r"chosen <=? [01]",
        "segment 0 comes first where it is chosen",
    ),
    Reason("*two_level.py:TwoLevelExact.score", r"\], 2\)$", "the first of equal columns is read"),
)
"""The first that fits is given."""


def reason_for(one: Survivor) -> str | None:
    """Why a survivor may live, or None: then a test is missing."""
    return next((reason.why for reason in REASONS if reason.explains(one)), None)
