"""The pages in the browser, under /admin: an overview for administrators, and for a key's holder what is his.

Nothing here is imported before the first page is asked for; jinja2 and the templates come with it.
"""
