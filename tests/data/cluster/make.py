#!/usr/bin/env python3
"""Makes the graphs of this directory, the values tests/cluster.c compares with, and an activation log.

Needs networkx (3.6 made the committed files): python3 make.py [DIR]
"""
import gzip
import json
import os
import random
import sys

import networkx as nx
from networkx.algorithms.community import louvain_communities, modularity


def weighted(g, rng):
    for u, v in g.edges:
        g[u][v]["weight"] = rng.choice([1, 2, 3, 5, 0.5, 7.25])
    return g


def tokens(rng, experts=48, topics=6, k=4, n=1500):
    """Co-activation of topic-bound tokens: a few favourite experts per topic, and noise."""
    g = nx.Graph()
    g.add_nodes_from(range(experts))
    for _ in range(n):
        t = rng.randrange(topics)
        used = set()
        while len(used) < k:
            near = rng.random() < 0.7
            used.add(rng.randrange(t, experts, topics) if near else rng.randrange(experts))
        for u in used:
            for v in used:
                if u < v:
                    g.add_edge(u, v, weight=g.get_edge_data(u, v, {"weight": 0})["weight"] + 1)
    return g


def record(name, g, rng):
    g = nx.convert_node_labels_to_integers(g)
    n = g.number_of_nodes()
    parts = []
    for resolution in (1.0, 0.5, 2.5):
        for groups in (1, 3, n):
            comm = [i if groups == n else rng.randrange(groups) for i in range(n)]
            sets = [s for s in ({i for i in range(n) if comm[i] == c} for c in range(groups)) if s]
            parts.append({"resolution": resolution, "comm": comm,
                          "modularity": modularity(g, sets, resolution=resolution)})
    best = []
    for resolution in (1.0, 1.5):
        q = max(modularity(g, louvain_communities(g, resolution=resolution, seed=s), resolution=resolution)
                for s in range(30))
        best.append({"resolution": resolution, "modularity": q})
    edges = [[u, v, d.get("weight", 1)] for u, v, d in g.edges(data=True)]
    return {"name": name, "networkx": nx.__version__, "nodes": n, "edges": edges, "partitions": parts, "best": best}


def activations(path, layers=3, experts=16, k=2):
    """Thirty sequences of topic-bound tokens; layer 0 is dense."""
    rng = random.Random(4)
    lines = [{"type": "model", "layers": layers, "experts": experts, "top_k": k, "expert_bytes": 98304,
              "fingerprint": "5eed" * 16}]
    favourites = [rng.sample(range(experts), experts) for _ in range(layers)]
    for seq in range(30):
        topic = rng.randrange(4)
        for pos in range(40):
            used = [[] for _ in range(layers)]
            for own, list_ in list(zip(favourites, used))[1:]:
                while len(list_) < k:
                    near = rng.random() < 0.75
                    x = own[rng.randrange(4) * 4 + topic] if near else rng.randrange(experts)
                    if x not in list_:
                        list_.append(x)
            lines.append({"type": "act", "seq": seq, "pos": pos, "token": rng.randrange(256), "layers": used})
    with open(path, "wb") as f, gzip.GzipFile("", "wb", 9, f, 0) as z:
        for o in lines:
            z.write((json.dumps(o, separators=(",", ":")) + "\n").encode())


def main():
    rng = random.Random(1)
    loops = weighted(nx.gnp_random_graph(40, 0.15, seed=2), rng)
    loops.add_edges_from([(3, 3, {"weight": 2.5}), (17, 17, {"weight": 4.0})])
    graphs = {
        "karate": nx.karate_club_graph(),
        "miserables": nx.les_miserables_graph(),
        "planted": nx.planted_partition_graph(8, 20, 0.4, 0.02, seed=3),
        "loops": loops,
        "tokens": tokens(rng),
        "ring": nx.ring_of_cliques(12, 5),
    }
    out = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    for name, g in graphs.items():
        with open(os.path.join(out, name + ".json"), "w", encoding="ascii") as f:
            json.dump(record(name, g, rng), f, separators=(",", ":"))
            f.write("\n")
    activations(os.path.join(out, "act.jsonl.gz"))


main()
