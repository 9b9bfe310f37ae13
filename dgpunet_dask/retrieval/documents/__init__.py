"""Documents as text with lines: Markdown, reStructuredText, HTML, PDF, DOCX, notebooks, plain text, from folders and from the web.

A text format stays as it is, so that a hit's lines are those of the file. Of the others a Markdown text is made, whose headings the
chunker knows. That text itself is kept nowhere but in the chunks: every line that is not blank lies in one, with its number, so that any
span of it can be shown without the document.
"""
