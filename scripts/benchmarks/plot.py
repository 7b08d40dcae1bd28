def require():
    pass


def draw(result, file):
    pass
