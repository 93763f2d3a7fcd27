"""The facts of a composed picture as people would ask for it: sentences in many languages, and the plain caption."""
