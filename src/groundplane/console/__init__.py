"""The web console: server-rendered pages over the same services as the API. Readable without JavaScript.

What may live here: routes, templates, one style sheet, one script, and what turns records into words and pictures.
A page asks services and renders; it decides nothing.
"""
