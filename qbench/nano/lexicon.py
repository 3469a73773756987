"""The words and phrasings of the embedded world; every sentence was written for this package.

Values are short, distinctive words, so that a tokenizer of 1024 entries gives most of them one token, and a
four-choice question costs one forward pass. In a phrasing ``{S}`` is the subject (a name, or He / She), ``{P}`` its
possessive (a name's, or His / Her) and ``{v}`` the value, always last, so that the text before it determines it.
"""


def words(text: str) -> list[str]:
    return text.split()


def either(phrasings: str) -> list[str]:
    return phrasings.split(" | ")


WOMEN = words("Mara Tova Ilse Nell Dora Wren Lena Rhea Cora Bess Suri Hope Faye Gina Opal Vera Zoe")
MEN = words("Oren Finn Hugo Otis Bram Cole Dirk Emil Gus Jude Kurt Lars Milo Ned Omar Pim Rolf Seth Tom")
SURNAMES = words("""Quill Vale Marsh Reed Thorn Birch Croft Dale Fenn Gale Hart Kemp Lunt Moss Nash Pell Rook Sand
    Tull Voss Wade York Zell Brand Clay Drake East Frost Grove Holt Jarvis Knox Lowe Mercer Noble Pike""")

VALUES = {
    "town": words("""Tarn Ostry Velm Karsk Brod Hesk Lunde Pirna Rovik Selby Trisk Ulm Varn Yarl Zelt Adel Bruk
        Corv Elst Farro Gorm Holm Jarn Lorm"""),
    "trade": words("""baker potter tailor mason smith farmer fisher miner weaver printer painter cook tanner sailor
        hunter teacher barber guard miller roofer shepherd gardener butcher joiner"""),
    "food": words("""soup bread rice plums figs honey beans eggs ham pears nuts corn dates pie cake peas tart jam
        crab melon"""),
    "instrument": words("""lute flute drum fiddle horn viola cello piano oboe organ banjo bugle gong lyre tuba
        guitar bell fife sitar pipe"""),
    "pet": words("""cat dog goat hen parrot toad newt ferret pony mouse lizard snake goose tortoise finch lamb crow
        rat pig hare"""),
    "colour": words("""red blue green black grey pink brown gold silver teal amber coral lilac beige scarlet
        crimson rust violet jade maroon"""),
    "month": words("January February March April May June July August September October November December"),
    "hobby": words("""chess poetry fishing running rowing dancing climbing hiking cards darts singing reading
        riding cycling boxing golf tennis bowling juggling drawing"""),
}
STATEMENTS = {
    "town": either("{S} lives in {v}. | {S} has a home in {v}. | {S} comes from {v}. | {P} town is {v}."),
    "trade": either("{S} works as a {v}. | {S} is a {v}. | {S} earns money as a {v}. | {P} trade is {v}."),
    "food": either("{S} likes to eat {v}. | {S} loves {v}. | {P} favourite food is {v}. | {P} best meal is {v}."),
    "instrument": either(
        "{S} plays the {v}. | {S} learned the {v}. | {P} instrument is the {v}. | {P} music is the {v}."
    ),
    "pet": either("{S} keeps a {v}. | {S} has a pet {v}. | {P} pet is a {v}. | {P} animal is a {v}."),
    "colour": either("{S} wears {v}. | {P} favourite colour is {v}. | {P} coat is {v}. | {P} door is {v}."),
    "month": either(
        "{S} was born in {v}. | {S} has a birthday in {v}. | {P} birthday is in {v}. | {P} birth month is {v}."
    ),
    "hobby": either("{S} enjoys {v}. | {S} is fond of {v}. | {P} hobby is {v}. | {P} free day is for {v}."),
}
PERSON_QUESTIONS = {
    "town": either("Where does {n} live? | Which town is {n} from?"),
    "trade": either("What does {n} work as? | What is {n}'s trade?"),
    "food": either("What does {n} like to eat? | What is {n}'s favourite food?"),
    "instrument": either("What does {n} play? | Which instrument does {n} play?"),
    "pet": either("What pet does {n} keep? | Which animal does {n} keep?"),
    "colour": either("What colour does {n} wear? | What is {n}'s favourite colour?"),
    "month": either("When was {n} born? | Which month was {n} born in?"),
    "hobby": either("What does {n} enjoy? | What is {n}'s hobby?"),
}

PLACES = {
    "river": words("Aldo Brenn Cald Dov Esk Garr Ims Kell Lyd Orr Suse Wye"),
    "region": words("Harrow Kesh Moor Dell Rhun Sund Tyre Wold"),
    "goods": words("honey corn beans plums nuts figs eggs rice"),
    "sight": words("tower bridge abbey castle market garden harbour mill"),
}
PLACE_STATEMENTS = {
    "river": either(
        "The river of {t} is the {v}. | The water of {t} is the {v}. | {t} lies on the {v}. | {t} was built on the {v}."
    ),
    "region": either("{t} is a town in {v}. | {t} lies in {v}. | The region of {t} is {v}. | {t} belongs to {v}."),
    "goods": either("{t} is known for {v}. | {t} sells {v}. | The goods of {t} are {v}. | The market of {t} has {v}."),
    "sight": either(
        "{t} has an old {v}. | The pride of {t} is the {v}. | The sight of {t} is the {v}. | "
        "People visit {t} for the {v}."
    ),
}
PLACE_QUESTIONS = {
    "river": either("Which river is {t} on?"),
    "region": either("Which region is {t} in?"),
    "goods": either("What is {t} known for?"),
    "sight": either("What is the sight of {t}?"),
}

_TOOLS = words("""oven wheel needle trowel hammer plough net pick loom press brush ladle knife compass bow chalk
    razor spear sieve ladder crook spade cleaver saw""")
TOOLS = dict(zip(VALUES["trade"], _TOOLS))
TOOL_STATEMENTS = either(
    "The {trade} uses the {tool}. | The tool of the {trade} is the {tool}. | The {tool} belongs to the {trade}. | "
    "The {tool} is used by the {trade}."
)
TOOL_QUESTIONS = [
    ("What tool does the {trade} use?", "tool"),
    ("Which tool belongs to the {trade}?", "tool"),
    ("Who uses the {tool}?", "trade"),
]
