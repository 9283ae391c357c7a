"""What a problem declares, against what can be measured."""
