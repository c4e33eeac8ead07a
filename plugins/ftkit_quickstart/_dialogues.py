"""Generated messenger dialogues with gold one-sentence summaries.

``rows(split, n, seed)`` returns dicts with keys id, dialogue, summary, intent,
who, what, where, when.  Everything is deterministic and needs only the
standard library.

The splits ``train`` and ``validation`` use the common names, places and
phrasing families.  The split ``test`` also uses names, places and one or two
phrasing families per intent that occur nowhere else, also not in the
pre-training text of ``make_model.py``: about a third of its rows use a
held-out phrasing, about half use held-out names, about half held-out places;
the rest are new combinations of known parts.

Seeds use ``random.Random(str)``, which hashes the string with SHA-512 and is
stable across processes and Python versions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

NAMES = """Anna Tom Maria Ben Clara David Ella Frank Grace Henry Ines Jack Kate Leo Mia Noah Olga Paul
Rosa Sam Tina Victor Wendy Alex Bella Carl Dora Eric Fiona George Hanna Ivan Julia Karl Laura Max Nina
Oscar Petra Ralf Sara Theo Vera Will Zoe Adam Beth Colin Diana Emil Felix Gina Hugo Iris Jonas Kim Lena
Mark Nora Otto Rita Simon Tessa Uma Adrian Brenda Conrad Daniel Emma Florian Gloria Harold Isabel Jasper
Kevin Linda Martin Natalie Oliver Pamela Robert Sandra Tobias Valerie Walter Yvonne Amir Chen Farid Hana
Jamal Kenji Layla Mei Omar Priya Ravi Sofia Tariq Yuki""".split()

HELD_NAMES = """Marek Selma Bruno Tilda Dario Nadia Lukas Corina Stefan Melina Anton Ramona Silas Delia
Milan Talia Roman Salma Damian Lorena Alina Boris Carmen Edgar Helga Jolene Manuel Renata Darian Marlon""".split()

PLACES = """Lisbon Paris London Berlin Madrid Rome Vienna Oslo Prague Dublin Athens Warsaw Boston Chicago
Denver Dallas Austin Seattle Toronto Sydney Cairo Lima Delhi Tokyo Seoul Hamburg Munich Lyon Porto Seville
Turin Naples Geneva Basel Bergen Malmo Leeds Bristol York Bath Oxford Dover Brighton Glasgow Cork Galway
Utrecht Ghent Bruges Bonn Trier Mainz Graz Linz Krakow Riga Tallinn Vilnius Sofia Zagreb Split Corfu Malta
Havana Quito Bogota Santiago Nairobi Dakar Accra Tunis Lagos Mumbai Hanoi Manila Perth Hobart Ashford
Milton Weston Marlow Stanford Harwood Kirkby Thornton""".split()
PLACES.remove("Sofia")  # also a first name here; every word is either a name or a place

HELD_PLACES = """Verona Marburg Salinas Bolton Tampere Granada Moreton Dalston Belgrade Sarande Palermo
Carlow Merton Halstead Valencia Ostend Lorient Tarragona Bremen Cardona Selby Larnaca Monterey Durban
Merida Toledo""".split()

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
PARTS = "morning afternoon evening night".split()

ADJECTIVES = "dark new small big red blue green white black yellow long short warm little heavy nice".split()
ACTIVITIES = {
    "play": "chess,tennis,cards,football,golf,the guitar,the piano,a board game",
    "see": "the {adj} film,the {adj} museum,the {adj} garden,a concert,the {adj} castle,a play",
    "bake": "a {adj} cake,bread,an apple pie,cookies",
    "cook": "soup,dinner,a {adj} fish,rice,a {adj} lunch",
    "paint": "the {adj} fence,the {adj} boat,a {adj} picture,the {adj} door",
    "visit": "the {adj} market,the zoo,the {adj} church,my aunt,the {adj} gallery",
    "buy": "a {adj} bike,a {adj} lamp,a {adj} table,shoes,a {adj} coat",
    "build": "a {adj} shed,a {adj} kite,a {adj} table,a {adj} boat",
    "watch": "the match,the race,the birds,a {adj} film",
    "go": "swimming,dancing,running,fishing,sailing,skating,climbing,hiking",
    "learn": "some songs,a {adj} dance,to juggle,to sing",
    "eat": "pizza,noodles,ice cream,a {adj} lunch",
    "plant": "the {adj} roses,a {adj} tree,the beans",
}
ERRANDS = {
    "pick up": "the {adj} parcel,the {adj} bag,the tickets,the {adj} keys,the {adj} cake",
    "feed": "the {adj} cat,the {adj} dog,the birds,the fish",
    "fix": "the {adj} bike,the {adj} lamp,the {adj} door,the radio,the {adj} boat",
    "sell": "the {adj} car,the {adj} table,the {adj} piano",
    "return": "the {adj} book,the {adj} camera,the {adj} coat",
    "clean": "the {adj} kitchen,the windows,the {adj} car,the {adj} boat",
    "bring": "the {adj} chairs,the {adj} tent,the guitar,the {adj} box,bread",
    "carry": "the {adj} box,the {adj} table,the {adj} lamp",
    "water": "the {adj} roses,the beans,the {adj} tree",
    "print": "the tickets,the {adj} poster,the photos",
}
THINGS = """scarf,hat,coat,bag,book,key,camera,phone,ring,glove,wallet,watch,notebook,lamp,kite,guitar,
ticket,bottle,shoe,laptop,umbrella,jacket,tent,bike""".replace("\n", "").split(",")
EVENTS_A = "chess,guitar,piano,dance,tennis,cooking,swimming,painting,french,singing,football,book".split(",")
EVENTS_B = "class,lesson,meeting,party,match,course,club,night,workshop,test".split(",")

GREETINGS = ["hi {o}", "hey {o}", "hello {o}", "hi there", "hey", "good morning {o}", "hello", "hey, it's me"]
HELLO_BACK = ["hi", "hello", "hey there", "hi, what's new?", "hey, nice to hear from you", "oh, hello", "yes?"]
HOW = [
    "how are you?",
    "how is it going?",
    "are you well?",
    "long time no see!",
    "did you sleep well?",
    "got a minute?",
    "can we talk?",
    "are you busy?",
    "what a day!",
    "how was work?",
]
FINE = [
    "fine, thanks",
    "all good here",
    "not bad at all",
    "a bit tired, but ok",
    "very well, and you?",
    "just having tea",
    "quite busy, but go on",
    "good, what is up?",
    "sure, tell me",
    "still at work",
]
OK = [
    "ok, great!",
    "perfect",
    "sounds good",
    "all right then",
    "good, thanks",
    "wonderful",
    "cool, see you",
    "fine with me",
    "super, thank you",
    "great, i like that",
    "yes, of course",
    "ok, no problem",
    "very good",
]
BYE = [
    "see you soon",
    "bye",
    "take care",
    "talk to you later",
    "thanks again",
    "i have to run now",
    "have a nice day",
    "say hi at home",
    "good night",
    "i will write it down",
]
SIDE = [
    "the weather is awful today",
    "i had too much coffee",
    "my train is late again",
    "the dog ate my lunch",
    "i am so hungry",
    "the new phone is slow",
    "my boss is away",
    "work was long",
    "i need more sleep",
    "it is cold in here",
    "the tea is very good",
    "the kids are loud today",
]
REPLY = ["oh no", "same here", "haha", "really?", "i know", "poor you", "that happens", "tell me about it"]
DISTRACT = [
    "{n} says hi",
    "i saw {n} in town",
    "{n} called me today",
    "i was in {p} last week",
    "{n} is back from {p}",
    "my cousin lives in {p}",
    "{n} got a new job",
]

# Phrasing families. "A" and "B" are the speakers; {t} is the hour, {d} the day,
# {when} both. HELD ones occur in the test split only.
FAMILIES = {
    "plan": [
        ["A shall we {what} in {where} on {d}?", "B yes, what time?", "A at {t}", "B {ok}"],
        ["A are you free on {d}?", "B yes, why?", "A we could {what} in {where}", "B good idea, at {t}?", "A {ok}"],
        ["A i want to {what}", "B me too, where?", "A in {where}, on {when}", "B {ok}"],
        ["A do you want to {what} with me?", "B sure, when and where?", "A {when}, in {where}", "B {ok}"],
        ["A i will be in {where} on {d}", "B then let's {what}", "A {ok}. is {t} fine?", "B yes"],
        ["A let's meet on {when}", "B ok, in {where}?", "A yes. we can {what} there", "B {ok}"],
    ],
    "cancel": [
        ["A sorry, i can't {what} on {d}", "B oh, you mean at {t} in {where}?", "A yes, i am ill", "B get well soon"],
        ["A about {when} in {where}", "B yes, we want to {what}", "A i can't make it, sorry", "B what a pity"],
        [
            "A i have to cancel {d}",
            "B but we wanted to {what} in {where} at {t}!",
            "A i know, i have to work",
            "B too bad",
        ],
        [
            "A bad news, i must stay at home on {when}",
            "B so we will not {what} in {where}?",
            "A no, sorry",
            "B ok, another time",
        ],
        ["B do we still {what} in {where}?", "A on {when}? no, i can't come", "B oh, why?", "A my car broke down"],
    ],
    "favour": [
        ["A can you {what} for me?", "B sure, where?", "A in {where}, on {when}", "B {ok}"],
        ["A i need your help in {where} on {d}", "B what can i do?", "A please {what} at {t}", "B {ok}"],
        ["A are you in {where} on {when}?", "B yes, why?", "A could you {what}?", "B {ok}"],
        ["A please help me. someone must {what} on {d}", "B i can do that. what time?", "A {t}, in {where}", "B {ok}"],
        [
            "B do you need help on {d}?",
            "A yes, can you {what} in {where}?",
            "B of course, at {t}",
            "A thank you so much",
        ],
    ],
    "lost": [
        ["A i lost {what}", "B oh no, where?", "A in {where}, on {when}", "B i will look for it"],
        ["A i was in {where} on {when} and now {what} is gone", "B i can search there", "A thank you"],
        ["A have you seen {what}?", "B no, when did you lose it?", "A on {when} in {where}", "B i will look around"],
        [
            "B why are you sad?",
            "A {what} is missing since {when}",
            "B where was that?",
            "A in {where}",
            "B let me look for it",
        ],
        ["A on {when} i left {what} in {where}", "B oh dear. i will go and look", "A you are the best"],
    ],
    "move": [
        ["A the {what} in {where} is not on {old}", "B oh, when then?", "A on {when}", "B {ok}"],
        ["A can we move the {what} from {old}?", "B the one in {where}? yes, {d} is fine", "A at {t} then", "B {ok}"],
        ["A i can't come to the {what} in {where} on {old}", "B how about {when}?", "A {ok}"],
        [
            "A we need a new date for the {what}",
            "B not {old}?",
            "A no, {when} is better",
            "B {ok}. still in {where}?",
            "A yes",
        ],
        ["B is the {what} on {old}?", "A no, it is on {when} now", "B in {where} as before?", "A yes"],
    ],
}
HELD_FAMILIES = {
    "plan": [
        [
            "A would you like to {what}?",
            "B with pleasure. does {d} suit you?",
            "A yes, around {t}, over in {where}",
            "B {ok}",
        ],
        ["A i found a lovely spot in {where}", "B what for?", "A to {what}, of course. {when}?", "B {ok}"],
    ],
    "cancel": [
        [
            "A don't wait for me on {when}",
            "B what happened? i thought we {what} in {where}",
            "A i missed my flight",
            "B next time then",
        ],
    ],
    "favour": [
        [
            "A i am stuck. would you mind to {what} on {d}?",
            "B not at all. is that in {where}?",
            "A exactly, by {t}",
            "B {ok}",
        ],
    ],
    "lost": [
        ["A {what} must have dropped out of my pocket", "B in {where}?", "A right, {when}", "B i'll keep my eyes open"],
    ],
    "move": [
        ["A they shifted the {what} away from {old}", "B and the new time?", "A {when}, and {where} stays", "B {ok}"],
    ],
}

SUMMARIES = {
    "plan": "{a} and {b} will {what} in {where} on {when}.",
    "cancel": "{a} and {b} will not {what} in {where} on {when}.",
    "favour": "{a} asked {b} to {what} in {where} on {when}.",
    "lost": "{a} asked {b} to find {what} lost in {where} on {when}.",
    "move": "{a} and {b} moved the {what} in {where} to {when}.",
}
INTENTS = tuple(SUMMARIES)


def what_for(rng: random.Random, intent: str) -> str:
    """Return a new value of the slot ``what`` for this intent."""
    if intent == "lost":
        return (
            "a " + rng.choice(ADJECTIVES) + " " + rng.choice(THINGS)
            if rng.random() < 0.7
            else "my " + rng.choice(ADJECTIVES) + " " + rng.choice(THINGS)
        )
    if intent == "move":
        return rng.choice(EVENTS_A) + " " + rng.choice(EVENTS_B)
    table = ERRANDS if intent == "favour" else ACTIVITIES
    verb = rng.choice(list(table))
    return verb + " " + rng.choice(table[verb].split(",")).replace("{adj}", rng.choice(ADJECTIVES))


def day(rng: random.Random) -> str:
    if rng.random() < 0.6:
        return rng.choice(DAYS)
    return rng.choice(MONTHS) + " " + str(rng.randint(1, 28))


def hour(rng: random.Random) -> str:
    h = rng.randint(8, 21)
    return str((h - 1) % 12 + 1) + rng.choice(["", "", ":30", ":15"]) + (" am" if h < 12 else " pm")


def make(
    rng: random.Random, intent: str, family: Sequence[str], a: str, b: str, where: str, names: Sequence[str],
    places: Sequence[str], small_talk: float = 0.5,
) -> tuple[list[tuple[str, str]], dict[str, str]]:  # fmt: skip
    """Return one dialogue: its lines [(speaker, text)] and its slots.

    a, b and where are facts; names and places are for remarks beside the topic.
    """
    what = what_for(rng, intent)
    d, t, old = day(rng), hour(rng), day(rng)
    while old == d:
        old = day(rng)
    if intent == "lost":
        when = rng.choice(DAYS) + " " + rng.choice(PARTS)
    else:
        when = d + " at " + t
    lines = []
    first = family[0][0] if rng.random() < 0.8 else rng.choice("AB")
    other = "B" if first == "A" else "A"
    who = {"A": a, "B": b}
    if rng.random() < small_talk or first != family[0][0]:
        greet = rng.choice(GREETINGS).replace("{o}", who[other])
        if rng.random() < 0.5:
            lines.append((first, greet))
            lines.append((other, rng.choice(HELLO_BACK)))
        else:
            lines.append((first, greet + ", " + rng.choice(HOW)))
            lines.append((other, rng.choice(FINE)))
    if rng.random() < small_talk * 0.5:
        x = rng.choice("AB")
        side = rng.choice(DISTRACT if rng.random() < 0.4 else SIDE)
        lines.append((x, side.replace("{n}", rng.choice(names)).replace("{p}", rng.choice(places))))
        lines.append(("B" if x == "A" else "A", rng.choice(REPLY)))
    body = []
    for turn in family:
        text = turn[2:].replace("{what}", what).replace("{where}", where).replace("{when}", when)
        text = text.replace("{d}", d).replace("{t}", t).replace("{old}", old).replace("{ok}", rng.choice(OK))
        body.append((turn[0], text))
    if rng.random() < 0.3:  # one line addresses the other person by name
        k = rng.randrange(len(body))
        s, text = body[k]
        if text[-1] not in "?!.":
            body[k] = (s, text + ", " + who["B" if s == "A" else "A"])
    lines += body
    if rng.random() < small_talk:
        x = "B" if lines[-1][0] == "A" else "A"
        lines.append((x, rng.choice(BYE)))
        if rng.random() < 0.3:
            lines.append(("B" if x == "A" else "A", rng.choice(BYE)))
    slots = {"a": a, "b": b, "what": what, "where": where, "when": when, "d": d, "t": t, "old": old}
    return [(who[s], text) for s, text in lines], slots


def summarise(intent: str, lines: list[tuple[str, str]], slots: dict[str, str]) -> tuple[str, list[str], str]:
    """Return the gold summary, the names in its order, and what it is about."""
    a, b = slots["a"], slots["b"]
    if intent in ("plan", "cancel", "move") and lines[0][0] == b:
        a, b = b, a  # the summary names the two in the order in which they speak
    what = slots["what"]
    if what.startswith("my "):
        what = "a " + what[3:]
    text = SUMMARIES[intent].format(a=a, b=b, what=what, where=slots["where"], when=slots["when"])
    return text, [a, b], what


def rows(split: str, n: int, seed: int = 0) -> list[dict[str, object]]:
    """Return n rows of the split ``train``, ``validation`` or ``test``. Raises ValueError for another split."""
    if split not in ("train", "validation", "test"):
        raise ValueError(f"unknown split {split!r}")
    rng = random.Random(f"ftkit-quickstart/{split}/{seed}")
    out, seen = [], set()
    while len(out) < n:
        intent = INTENTS[len(out) % len(INTENTS)]
        names, places, families = NAMES, PLACES, FAMILIES[intent]
        held = []
        if split == "test":
            if rng.random() < 0.5:
                names = HELD_NAMES
                held.append("names")
            if rng.random() < 0.5:
                places = HELD_PLACES
                held.append("places")
            if rng.random() < 1 / 3:
                families = HELD_FAMILIES[intent]
                held.append("phrasing")
        a, b, c = rng.sample(names, 3)
        where, p = rng.sample(places, 2)
        lines, slots = make(rng, intent, rng.choice(families), a, b, where, [c], [p])
        dialogue = "\n".join(f"{s}: {text}" for s, text in lines)
        if dialogue in seen:
            continue
        seen.add(dialogue)
        summary, who, what = summarise(intent, lines, slots)
        out.append(
            {
                "id": f"{split}-{seed}-{len(out)}", "dialogue": dialogue, "summary": summary, "intent": intent,
                "who": who, "what": what, "where": where, "when": slots["when"], "held_out": ",".join(held),
            }
        )  # fmt: skip
    return out
