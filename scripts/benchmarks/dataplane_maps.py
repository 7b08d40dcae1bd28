def rows(rounds, quick):
    return []


def ratio(rows):
    return {"peers_1m_over_1": None}
