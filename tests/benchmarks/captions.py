"""Captions as COCO's are: a sentence, about 52 characters, ten words."""

from __future__ import annotations

CAPTIONS = (
    "A man riding a wave on top of a surfboard.",
    "A kitchen with wooden cabinets and a stainless steel stove.",
    "Two dogs are playing with a frisbee in a grassy field.",
    "A red double decker bus driving down a city street.",
    "A young girl holding an umbrella while standing in the rain.",
    "A plate of food with broccoli, rice and grilled chicken on a table.",
    "Several people are flying kites on the beach.",
    "A black cat is sleeping on a laptop keyboard next to a coffee mug.",
    "A baseball player swinging a bat at a ball.",
    "A bathroom with a white toilet and a sink.",
    "A group of people sitting around a table with wine glasses.",
    "A herd of sheep grazing on a lush green hillside.",
    "A woman in a blue dress is cutting a large birthday cake.",
    "A train traveling down tracks next to a forest.",
    "A giraffe standing next to a tree in a fenced in area.",
    "A bunch of bananas hanging from a wooden ceiling.",
    "A man on skis going down a snow covered slope.",
    "A teddy bear sitting on a bed beside an open book.",
    "A vase filled with flowers on top of a wooden table.",
    "An old clock tower in the middle of a busy square with a few people walking by.",
    "A pizza with cheese and tomatoes on a pan.",
    "A child brushing his teeth in front of a mirror.",
    "A small airplane parked on the runway of an airport.",
    "A stop sign at the corner of an intersection at night.",
    "Two zebras drinking water from a pond.",
    "A person is looking at a cell phone while riding on the subway.",
    "A living room filled with furniture and a flat screen TV.",
    "A tennis player about to serve the ball on a clay court.",
    "A boat floating on a calm lake under a cloudy sky.",
    "A fire hydrant that is painted red and white on the side of a road.",
    "A horse pulling a carriage through the streets of an old town.",
    "A bowl of oranges and apples sitting on a counter.",
)


def captions(count: int) -> list[str]:
    """So many captions, the list again and again."""
    return [CAPTIONS[number % len(CAPTIONS)] for number in range(count)]
