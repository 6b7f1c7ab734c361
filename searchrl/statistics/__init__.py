"""Statistics of paired answers: means with intervals, and significance tests of differences."""
