"""Scoring of answers, task results, how well routing follows the tasks, and the statistics of comparisons."""
