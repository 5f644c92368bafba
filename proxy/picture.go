package proxy

import (
	"cmp"
	"context"
	"slices"

	"github.com/volant-edge/volant"
)

// Picture is one app at one moment: who waits, which slots are held, and what became of all connections
// since the proxy began. It is for whoever checks the proxy from outside.
type Picture struct {
	Waiting int               `json:"waiting"`
	Places  []PlacePicture    `json:"places"`
	Served  uint64            `json:"served"`  // connections that a machine accepted
	Refused map[string]uint64 `json:"refused"` // by the rule
}

// PlacePicture is one machine's port.
type PlacePicture struct {
	Machine volant.MachineID `json:"machine"`
	Port    uint16           `json:"port"`
	Used    int              `json:"used"`
	Hard    int              `json:"hard"`
	// Ready says that it takes connections: it serves, and its app accepted when it was asked last.
	Ready bool `json:"ready"`
}

// Picture is the app's picture now.
func (p *Proxy) Picture(_ context.Context, id volant.AppID) (Picture, error) {
	var out Picture
	known := false
	for _, a := range p.allApps() {
		if a.id == id {
			out.add(a.picture())
			known = true
		}
	}
	if !known {
		return Picture{}, volant.Errorf(volant.ErrNotFound, "the proxy knows no app %s", id)
	}
	slices.SortFunc(out.Places, func(x, y PlacePicture) int {
		return cmp.Or(cmp.Compare(x.Machine, y.Machine), cmp.Compare(x.Port, y.Port))
	})
	return out, nil
}

// add adds the picture of another group.
func (pic *Picture) add(of Picture) {
	if pic.Refused == nil {
		pic.Refused = map[string]uint64{}
	}
	pic.Waiting += of.Waiting
	pic.Served += of.Served
	pic.Places = append(pic.Places, of.Places...)
	for rule, n := range of.Refused {
		pic.Refused[rule] += n
	}
}

func (a *app) picture() Picture {
	pic := Picture{Refused: a.counts.refusals(), Served: a.counts.served.Load()}
	a.mu.Lock()
	defer a.mu.Unlock()
	pic.Waiting = a.waiting
	for port, s := range a.services {
		for i, pl := range s.places[:s.here] { // of the others the host knows
			pic.Places = append(pic.Places, PlacePicture{
				Machine: pl.m.id, Port: port, Used: int(pl.used), Hard: int(pl.hard), Ready: s.cands[i].flags == serving,
			})
		}
	}
	return pic
}
