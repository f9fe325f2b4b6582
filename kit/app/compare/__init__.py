"""The Compare tab: adapters answer one problem side by side."""
