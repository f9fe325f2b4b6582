"""Problems with gold answers, and how completions are judged and rewarded."""
