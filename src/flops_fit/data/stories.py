"""Made-up stories: short English ones from a small seeded grammar, so that every text recipe can be tried offline.

They are not TinyStories and no person wrote them. What there is to learn is a made-up world: who lives where with
whom and likes what, which adjective goes with which thing, what is done with it. Every choice is drawn from a list of
its own whose k-th member has a weight of 1/k (Zipf), so frequent facts are learned early and rare ones late, and the
held-out loss goes on falling with model and data.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

NAMES = 600
TRUE = 0.85  # share of the facts about a hero that are told as the world has them


def _list(words: str, between: str | None = None) -> tuple[str, ...]:
    return tuple(" ".join(words.split()).split(between))


FIRST = _list("""
    Ba Be Bo Da Di Do Fa Fi Jo Ka Ki La Li Lo Ma Me Mi Mo Na Ne No Pa Pi Ro Ru Sa Si Ta Ti To Va Zo
""")
LAST = _list("bo da dy fin ka la lin lo ma mi mo na nix no ra ri ro sa tam to va zi")
KINDS = _list("girl boy cat dog rabbit fox bear mouse bird frog duck pony robot dragon snail turtle")
THINGS = _list("""
    apple ball basket bell berry blanket boat book boot bottle bowl box bread bridge broom brush bucket butterfly
    button cake candle candy car card carrot castle chair cherry clock cloud coat coin cookie cup dish doll door
    drawing dress drum egg feather fence flag flower flute fork garden gate gift glove grape hammer hat hill honey
    house jar jewel key kite ladder lamp leaf lemon letter lock map marble mask mirror mitten moon mushroom
    necklace needle nest net nut onion orange oven paint pan paper path peach pear pebble pencil penny photo piano
    pie pillow pin pipe plant plate plum pocket pond pot potato puddle pumpkin puppet puzzle radio rake ribbon
    ring rock rocket rope rose ruler sack salt sand scarf seed shell shoe shovel sign silk sled soap sock song
    soup spoon stamp star stick stone stool story string sugar swing table tent ticket tomato tooth towel tower
    toy train treasure tree truck trumpet umbrella vase violin wagon watch water wheel whistle window wool
""")
ADJECTIVES = _list("""
    angry bent big black blue brave bright broken brown busy calm careful cheap clean clever cold cool curious
    dark deep dirty dry dusty empty fancy fast fat flat fluffy fresh friendly full funny furry gentle giant glad
    golden good gray green happy hard heavy hot huge icy kind large lazy light little lonely long loud lovely
    lucky magic messy new nice noisy old orange perfect pink plain polite poor pretty proud purple quick quiet
    rare red rich rotten rough round rusty sad shiny short shy silly silver simple sleepy slow small smart smooth
    soft sour special spicy sticky strange strong sunny sweet tall tasty thick thin tidy tiny tired ugly useful
    warm weak wet white wide wild wise wooden yellow young
""")
VERBS = _list("""
    borrow break bring build bury buy carry catch clean climb collect cook count cover cut draw drop eat fill find
    fix fold follow give grab hide hold hug kick lift lose mix move name open paint pick plant polish pull push
    reach roll save sell send shake share show sing smell spill taste throw touch trade try turn use visit wash
    watch wear wrap
""")
PLACES = _list("""
    in the forest, by the river, on the farm, near the sea, in the park, at the market, under the bridge, on the
    hill, in the village, behind the school, in the old barn, by the lake, in the garden, at the station, in the
    cave, on the island, next to the mill, in the kitchen, on the beach, at the end of the road, in the attic, by
    the well, in the tall tower, near the bakery, in the meadow, at the zoo, on the roof, in the library, by the
    fire, in the desert
""", ", ")
FEELINGS = _list("""
    happy sad proud scared surprised tired excited angry lonely brave sorry calm curious worried hungry glad
""")
STARTS = _list("Once upon a time there was, Once there was, There once was, Long ago there lived", ", ")
WEATHER = _list("sunny rainy windy snowy cloudy foggy warm cold quiet stormy")
LESSONS = _list("""
    it is good to share, friends help each other, it is brave to say sorry, small things matter, you should ask
    first, being kind is easy, it is fine to be different, you should never give up, old things can be new again,
    it is better to tell the truth, waiting makes things sweeter, everyone needs a rest
""", ", ")


class Ranked:
    """A list in a random order, drawn from with a weight of 1/k for its k-th member."""

    def __init__(self, members: Sequence[str], world: random.Random) -> None:
        self.members = world.sample(members, len(members))
        self._weights = list(accumulate(1 / k for k in range(1, len(members) + 1)))

    def draw(self, dice: random.Random) -> str:
        return dice.choices(self.members, cum_weights=self._weights)[0]


@dataclass(frozen=True, slots=True)
class Hero:
    """What the world knows of a name."""

    kind: str
    trait: str
    home: str
    friend: str
    loves: str


class World:
    """All tables of the grammar, the same for the same seed."""

    def __init__(self, seed: int = 0) -> None:
        world = random.Random(seed)

        def ranked(members: Sequence[str]) -> Ranked:
            return Ranked(members, world)

        names = world.sample([first + last for first in FIRST for last in LAST], NAMES)
        self.names, self.weather, self.traits = ranked(names), ranked(WEATHER), ranked(ADJECTIVES)
        self.kinds, self.places, self.things = ranked(KINDS), ranked(PLACES), ranked(THINGS)
        self.found = {place: ranked(THINGS) for place in PLACES}        # what lies where
        self.looks = {thing: ranked(ADJECTIVES) for thing in THINGS}    # how it looks
        self.use = {thing: ranked(VERBS) for thing in THINGS}           # what is done with it
        self.feels = {verb: ranked(FEELINGS) for verb in VERBS}         # how that feels
        self.lesson = {verb: ranked(LESSONS) for verb in VERBS}         # what it teaches
        self.hero = {
            name: Hero(self.kinds.draw(world), self.traits.draw(world), self.places.draw(world),
                       self.names.draw(world), self.things.draw(world))
            for name in names
        }  # fmt: skip

    def story(self, dice: random.Random) -> str:
        """One story of two to four paragraphs."""
        name = self.names.draw(dice)
        hero = self.hero[name]
        kind = self._fact(hero.kind, self.kinds, dice)
        home = self._fact(hero.home, self.places, dice)
        trait = self._fact(hero.trait, self.traits, dice)
        start = dice.choice(STARTS)
        parts = [f"{start} {_a(trait)} {kind} named {name}. {name} lived {home}."]
        if dice.random() < 0.6:
            loved = self._fact(hero.loves, self.things, dice)
            parts[0] += f" {name} loved the {self.looks[loved].draw(dice)} {loved} more than anything."
        for _ in range(dice.choice((1, 1, 2))):
            parts.append(self._adventure(name, hero, home, dice))
        return "\n".join(parts)

    def _adventure(self, name: str, hero: Hero, home: str, dice: random.Random) -> str:
        """Something is found, wanted, done; the friend comes; it feels some way and teaches something."""
        place = home if dice.random() < 0.5 else self.places.draw(dice)
        thing = self.found[place].draw(dice)
        look, verb = self.looks[thing].draw(dice), self.use[thing].draw(dice)
        friend = self._fact(hero.friend, self.names, dice)
        said = [f"One {self.weather.draw(dice)} day, {name} saw {_a(look)} {thing} {place}."]
        said.append(dice.choice((
            f"{name} wanted to {verb} it.",
            f'"I want to {verb} the {thing}," said {name}.',
            f"It was so {self.looks[thing].draw(dice)} that {name} had to {verb} it.",
        )))  # fmt: skip
        if dice.random() < 0.7:
            other = self.use[thing].draw(dice)
            said.append(dice.choice((
                f'Then {friend} the {self.hero[friend].kind} came. "May I {other} the {look} {thing}?" asked {friend}.',
                f'"Do not {other} it!" said {friend}, who lived {self.hero[friend].home}.',
                f"{friend} came to help, and they began to {other} the {thing} together.",
            )))  # fmt: skip
        feeling = self.feels[verb].draw(dice)
        said.append(f"{name} felt {feeling}.")
        if dice.random() < 0.6:
            said.append(f"That day, {name} and {friend} learned that {self.lesson[verb].draw(dice)}.")
        return " ".join(said)

    @staticmethod
    def _fact(true: str, others: Ranked, dice: random.Random) -> str:
        return true if dice.random() < TRUE else others.draw(dice)


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" and word != "useful" else f"a {word}"


@cache
def _world() -> World:
    return World()


def made_up_stories(seed: int = 1) -> Iterator[str]:
    """Stories without end, the same for the same seed, always of the same world."""
    world, dice = _world(), random.Random(seed)
    while True:
        yield world.story(dice)
