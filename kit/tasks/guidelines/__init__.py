"""Whether completions follow guidelines: the checks, what they earn, and by which lines."""

from kit.tasks.guidelines.attempt import Attempt, Finding
from kit.tasks.guidelines.following import Follower, Following, follower_of, mean_adherence

__all__ = ["Attempt", "Finding", "Follower", "Following", "follower_of", "mean_adherence"]
