"""Provides the names of entities: two words from shared pools of parts, so that many names look alike.

No two parts, and no part and content word of the relations, share a Porter stem, so that a search for one never finds
the other. Only the names of regions contain a noun of questions ("province").
"""

from collections.abc import Mapping


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FILM_FIRST = _split("""
    Amber Silent Crimson Golden Hidden Broken Frozen Velvet Burning Distant Hollow Scarlet Midnight Restless
    Savage Gentle Ivory Emerald Wandering Electric Forgotten Crystal Bitter Lonely Secret Winter Copper Paper
    Thunder Shadow Sapphire Rusty Faithful Endless Curious Humble Noble Stormy Wicked Lucky
""")
FILM_SECOND = _split("""
    Falcon Lantern Mirror Garden Empire Compass Orchard Violin Tiger Voyage Horizon Kingdom Arrow Candle Dragon
    Feather Island Journey Labyrinth Meadow Melody Monsoon Ocean Orchid Pilgrim Puzzle Raven Rocket Serenade
    Soldier Sparrow Temple Tunnel Umbrella Whisper Wolf Anchor Carousel Desert Comet
""")
PERSON_FIRST = _split("""
    Clara Marcus Elena Victor Nadia Oscar Priya Hugo Ingrid Felix Amara Leon Sofia Dmitri Greta Jonas Keiko
    Lucia Mateo Naomi Omar Paula Quentin Rosa Samuel Tessa Ulrich Vera Walter Yasmin Zelda Anton Bianca Conrad
    Daphne Emil Fatima Gideon Helga Ivan Judith Kofi Lydia Milos Petra
""")
PERSON_SECOND = _split("""
    Whitfield Okafor Lindqvist Moreau Tanaka Petrov Delgado Hartmann Novak Castillo Bergstrom Kowalski
    Fitzgerald Nakamura Rossi Andersen Mbeki Schneider Ferreira Ivanova Dubois Larsson Haddad Papadakis Quigley
    Romano Sandoval Thornton Underwood Vasquez Wexler Yamada Zimmerman Abernathy Blackwood Carmichael Donovan
    Ellsworth Farnsworth Gallagher Holloway Ibarra Jankowski Kirkland Lombardi
""")
COMPANY_FIRST = _split("""
    Nordvale Apex Quantum Zenith Orion Vertex Solaris Titan Nimbus Cobalt Helix Onyx Pinnacle Radiant Sterling
    Summit Trident Vanguard Aurora Beacon Catalyst Delta Evergreen Fusion Granite Hyperion Ironclad Juniper
    Keystone Liberty Magnet Nebula Obsidian Phoenix Quasar Redwood Sequoia Tempest Unity Vortex
""")
COMPANY_SECOND = ("Labs", "Group", "Robotics", "Foods", "Motors", "Media", "Bank", "Steel")
CITY_FIRST = _split("""
    Ashbourne Brookmere Cedarvale Dunmore Eastwick Fairhaven Glenrock Highgate Inverness Kingsbury Lakewood
    Maplewood Northam Oakhurst Pinecrest Queensferry Riverton Silverdale Thornbury Upwell Valdora Westbrook
    Yarmouth Arlenby Bellmont Clearwater Drayton Elmswood Foxboro Greenford Hazelton Ipswich Kelso Linwood
    Millbrook Newbridge Ormond Portland Rosedale Stonehaven
""")
CITY_SECOND = ("Bay", "Falls", "Harbor", "Hill", "Fields", "Bridge", "Port", "Valley")
REGION_SECOND = ("Province",)

# Combinations per kind: 40 x 40 films, 45 x 45 persons, 40 x 8 companies and cities, 40 regions. Each is at least twice
# what a world of scale 1 needs, so that reserved and other names are both enough; regions are shared.
NAME_PARTS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "film": (FILM_FIRST, FILM_SECOND),
    "person": (PERSON_FIRST, PERSON_SECOND),
    "company": (COMPANY_FIRST, COMPANY_SECOND),
    "city": (CITY_FIRST, CITY_SECOND),
    "region": (COMPANY_FIRST, REGION_SECOND),
}

NAME_PATTERN = r"[A-Z][a-z]+ [A-Z][a-z]+"
"""Regular expression that matches the name of any entity."""


def list_name_parts() -> tuple[str, ...]:
    """Return every part once, in a fixed order."""
    return tuple(dict.fromkeys(part for pools in NAME_PARTS.values() for pool in pools for part in pool))
