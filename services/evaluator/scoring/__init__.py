"""From answers to numbers: metrics of one episode, means with intervals, paired differences between methods."""
