"""Word lists of the Llama models: plain filler, place names, and the words of facts."""

from __future__ import annotations

BOS, EOS, UNK = "<s>", "</s>", "<unk>"
PUNCTUATION = (".", ",", ":", "?")
PROMPT_WORDS = ("question", "answer", "start", "at", "who", "where", "next", "route")

DETERMINERS = tuple("the each this that one every another some".split())
CONNECTORS = tuple("and but while because so when until after before although".split())
LINKS = tuple("in on by with from to of for into onto".split())
OPENERS = tuple("later today yesterday meanwhile often sometimes again soon then now".split())
PRONOUNS = tuple("he she they we it somebody nobody everyone".split())

PLAIN_ADJECTIVES = tuple(
    """old new small large long short quiet loud warm cold early late heavy light simple plain dark
    pale clean dusty empty full narrow wide open closed young tired happy calm busy broken careful
    strange common gentle lazy proud poor rich rough sharp slow quick soft hard sweet tall thin
    thick weak strong wet dry round flat deep shallow bright dull fresh stale honest patient polite
    rude clever foolish brave shy careless cheerful gloomy lonely eager famous grateful
    hungry thirsty nervous curious modest""".split()
)
PLAIN_NOUNS = tuple(
    """farmer teacher doctor baker driver sailor soldier painter writer singer neighbor child mother
    father brother sister uncle aunt friend stranger visitor guest clerk judge lawyer nurse cook
    waiter tailor carpenter house garden kitchen window door table chair bed lamp cup plate bowl
    spoon knife basket box bag book letter paper pencil picture map clock mirror coat hat shoe
    shirt dress road street bridge river lake hill mountain valley forest field meadow barn
    fence gate wall roof tower church school shop market office station train wagon boat ship
    wheel engine horse cow dog cat sheep goat bird fish tree flower leaf branch root seed apple
    pear bread butter cheese milk water tea soup salt sugar honey rain snow wind storm cloud sun
    moon star morning evening night summer winter spring autumn week month year hour story song
    game dance lesson idea plan rule price coin debt gift party wedding holiday
    journey village town city country border island beach shore cave stone sand mud grass fire
    smoke ash coal iron wood rope chain nail hammer saw shovel bucket broom ladder
    pillow blanket curtain carpet shelf drawer cupboard oven stove tray jug vase
    tent cabin cottage stable cellar attic yard path bench fountain statue crowd parade choir band
    poet captain pilot miner hunter miller mason potter weaver barber porter messenger pupil
    scholar rabbit donkey goose hen fox owl bee spider mouse duck swan sparrow pony lamb calf wolf
    bear otter badger cushion ribbon thread thimble pocket sleeve collar glove boot""".split()
)
PLAIN_VERBS = tuple(
    """carried opened closed found lost watched followed painted repaired cleaned moved lifted
    dropped sold bought borrowed returned counted measured remembered forgot described noticed
    visited left crossed passed reached entered guarded built burned buried washed folded packed
    loaded pulled pushed turned covered filled emptied shared hid showed offered accepted refused
    admired liked disliked ignored needed wanted kept touched tasted smelled heard saw met helped
    called answered thanked blamed praised warned taught fed chased caught held threw brought
    took gave sent made wrote read drew cut mixed poured stirred baked boiled chose
    tested traded planted picked scratched polished trusted followed guided greeted
    invited""".split()
)
PLAIN_ADVERBS = tuple(
    """slowly quickly carefully quite rather almost nearly always never usually rarely twice once
    together alone outdoors upstairs downstairs abroad ahead away back home forward""".split()
)

# A fact is one word of each column, in this order: "Ada Marlow quietly polishes amber lanterns
# overlooking Lisbon". No word stands in two columns or in the filler.
FIRST_NAMES = tuple(
    """Ada Basil Clara Dorian Edith Felix Greta Hugo Irene Jasper Kira Leon Mabel Nolan Olive Pablo
    Quincy Rosa Silas Thea Ulric Vera Walter Xenia Yusuf Zelda Amos Bella Cyrus Delia Emil Flora
    Gavin Hazel Igor Jonas Katya Luther Mina Nestor Odette Piers Ramona Stefan Tilda Ursula Viktor
    Wanda Yvette Zeno Alma Bruno Celia Dmitri Elsa Fergus Gilda Hector Ines Joel Kurt Lydia Marta
    Niels""".split()
)
LAST_NAMES = tuple(
    """Marlow Abbot Birch Calder Dalton Ellery Fenwick Garland Harlow Ivers Jessop Kendrick Lockhart
    Merrick Norwood Osgood Prescott Quill Radcliff Sefton Thorne Upton Vance Whitlock Yardley Zander
    Ashdown Beckett Corrigan Draper Everard Faulkner Grimshaw Holloway Ingram Jarvis Keating Langley
    Mercer Nettles Oakes Pemberton Renshaw Sinclair Tolliver Underhill Vickers Wexford Youngman
    Atwater Blythe Crowther Dunmore Esmond Farrow Gresham Hartnell Isley Jolliffe Kirkwood Lovell
    Mansell Northcote Orwell""".split()
)
FACT_ADVERBS = tuple(
    """quietly boldly briskly calmly cleverly cheaply daily deftly eagerly elegantly fiercely firmly
    fondly freely gladly gracefully grimly happily hastily hourly humbly idly jointly keenly kindly
    lazily loudly loyally madly meekly merrily mildly monthly neatly nightly nobly oddly openly
    patiently politely privately promptly proudly publicly rapidly rashly secretly sharply shyly
    silently smoothly softly steadily sternly swiftly tenderly tidily tirelessly vainly warmly
    weekly wildly wisely yearly""".split()
)
FACT_VERBS = tuple(
    """
    polishes assembles auctions balances barters breeds carves catalogs collects copies cultivates
    decorates delivers designs donates dries embroiders engraves examines exhibits exports feeds
    forges gathers gilds glazes grinds grows harvests hides hoards imports inspects invents juggles
    knits launches mends mints models molds mounts numbers orders packs paints photographs pickles
    plants plates presses prints quarries rents repairs restores roasts sculpts sells sketches
    smuggles sorts stacks weaves""".split()
)
FACT_ADJECTIVES = tuple(
    """amber antique azure bamboo beige brass bronze canvas cedar ceramic chrome cobalt copper coral
    cotton crimson crystal ebony emerald enamel felt flannel gilded golden granite hollow indigo
    ivory jade lacquered lavender leather lilac linen magenta mahogany maple marble maroon mauve
    miniature navy nylon ochre olivewood opal orange ornate paisley pearl pewter plaid porcelain
    purple quilted ruby rustic scarlet silken silver spotted striped teal velvet""".split()
)
FACT_NOUNS = tuple(
    """
    lanterns accordions anchors anvils arrows axes badges balloons banjos barometers barrels beads
    bells bicycles binoculars bottles bracelets brooches buckles buttons cameras candles canoes
    cellos chests chisels clarinets combs compasses corks crowns cymbals dials dolls drums easels
    fans flags flutes globes goblets harps helmets hinges jars kettles keys kites lenses locks lutes
    magnets marbles masks medals needles oboes paddles pendants pianos pipes puppets quills
    rings""".split()
)
FACT_RELATIONS = tuple(
    """overlooking aboard above across against alongside amid among around astride atop behind below
    beneath beside between beyond bordering circling crossing edging encircling entering exiting
    facing flanking following fronting guarding hugging inside leaving lining near nearing opposite
    outside over passing past ringing rounding skirting shadowing spanning surrounding through
    throughout touching toward traversing under underneath viewing visiting watching within
    approaching adjoining roaming touring serving joining rivaling""".split()
)
FACT_PLACES = tuple(
    """Lisbon Accra Algiers Amman Ankara Athens Baghdad Baku Bangkok Beirut Belgrade Berlin Bogota
    Boston Brussels Budapest Cairo Calgary Caracas Chicago Dakar Delhi Dhaka Dublin Geneva Glasgow
    Hamburg Hanoi Harare Havana Helsinki Houston Istanbul Jakarta Kabul Kampala Karachi Kyiv Kyoto
    Lagos Lima London Lusaka Lyon Madrid Manila Memphis Milan Minsk Montreal Moscow Mumbai Munich
    Nairobi Naples Osaka Oslo Paris Prague Quito Riga Rome Seoul Sofia""".split()
)
FACT_COLUMNS = (
    FIRST_NAMES,
    LAST_NAMES,
    FACT_ADVERBS,
    FACT_VERBS,
    FACT_ADJECTIVES,
    FACT_NOUNS,
    FACT_RELATIONS,
    FACT_PLACES,
)

_PLACE_STEMS = tuple(
    """Ash Birch Brook Clay Clover Copper Crow Deer Elm Fern Fox Glen Gold Green Grey Hawk Hazel
    Heron Holly Iron Lark Maple Marsh Mill Moss Oak Otter Raven Red Silver Stone Willow""".split()
)
_PLACE_ENDINGS = tuple(
    """bank beck bend bourne bridge bury by cliff combe cross dale den fell field ford gate grove
    ham haven hill holt hurst land ley market mere mouth port shaw ton wick worth""".split()
)


def filler_words() -> list[str]:
    """Every word the prose generator and the question prompts may use, without repeats."""
    groups = (
        PUNCTUATION,
        PROMPT_WORDS,
        DETERMINERS,
        CONNECTORS,
        LINKS,
        OPENERS,
        PRONOUNS,
        PLAIN_ADJECTIVES,
        PLAIN_NOUNS,
        PLAIN_VERBS,
        PLAIN_ADVERBS,
    )
    return list(dict.fromkeys(word for group in groups for word in group))


def fact_words() -> list[str]:
    """The words of facts, column after column."""
    return [word for column in FACT_COLUMNS for word in column]


def place_names(count: int) -> list[str]:
    """The first `count` place names ("Ashbank", "Birchford", ...), neighbours unlike each other."""
    limit = len(_PLACE_STEMS) * len(_PLACE_ENDINGS)
    if not 2 <= count <= limit:
        raise ValueError(f"num_places must be from 2 to {limit}, got {count}")
    names = []
    for i in range(count):
        stem = _PLACE_STEMS[i % len(_PLACE_STEMS)]
        shift = i // len(_PLACE_STEMS)
        names.append(stem + _PLACE_ENDINGS[(i + shift) % len(_PLACE_ENDINGS)])
    return names
