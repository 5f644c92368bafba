package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/store"
)

// bootstrap makes what every cluster has: the first organization, this node's record and the root token.
// With the store down it leaves everything as it is.
func (p *Platform) bootstrap(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootGrace)
	defer cancel()
	if p.Down {
		return p.cat.Wait(ctx, p.Known)
	}
	org := &volant.Org{Name: "Personal"}
	org.Meta = volant.Meta{Kind: volant.KindOrg, Org: volant.OrgPersonal, ID: string(volant.OrgPersonal)}
	node := &volant.Node{Name: p.Name, Region: p.Region, Roles: []string{"edge", "host", "control"}}
	node.Meta = volant.Meta{Kind: volant.KindNode, ID: string(p.Node)}
	root := &volant.Token{Name: "root", Hash: control.HashToken(p.Token), Scopes: []string{"admin"}}
	root.Meta = volant.Meta{Kind: volant.KindToken, Org: control.AnyOrg, ID: root.Hash[:16]}
	var last store.Revision
	for _, rec := range []volant.Record{org, node, root} {
		rev, err := store.Create(ctx, p.Store, "bootstrap", rec)
		if err != nil && !errors.Is(err, volant.ErrExists) {
			return fmt.Errorf("write %s: %w", rec.Head().Key(), err)
		}
		if err == nil {
			last = rev
		}
	}
	return p.cat.Wait(ctx, last)
}

// reap makes tombstones of the records of machines that their host has destroyed.
func (p *Platform) reap(ctx context.Context) error {
	changed, cancel := p.cat.Subscribe()
	defer cancel()
	retry := time.NewTicker(5 * time.Second)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-retry.C:
		}
		snap := p.cat.Snapshot()
		for m := range snap.MachinesOn(p.Node) {
			if m.Tombstone || m.Run != volant.RunDestroyed {
				continue
			}
			if have, ok := snap.Have(volant.MachineID(m.ID)); !ok || have.State != volant.StateDestroyed {
				continue
			}
			if _, err := store.Delete(ctx, p.Store, "host", m.Key()); err != nil && !errors.Is(err, volant.ErrNotFound) {
				p.Log.Debug("tombstone not written yet", "machine", m.ID, "err", err)
				break // the store is away; the ticker comes back
			}
		}
	}
}
