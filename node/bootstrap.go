package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/catalog"
	"github.com/volant-edge/volant/control"
	"github.com/volant-edge/volant/store"
)

// bootstrap makes what every cluster has: the first organization, this node's record and the root token.
// With the store down, and on a server that joined, it leaves everything as it is.
func (p *Platform) bootstrap(ctx context.Context) error {
	if p.Joined {
		return p.awaitRecord(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, bootGrace)
	defer cancel()
	if p.Down {
		return p.cat.Wait(ctx, p.Known)
	}
	org := &volant.Org{Name: "Personal"}
	org.Meta = volant.Meta{Kind: volant.KindOrg, Org: volant.OrgPersonal, ID: string(volant.OrgPersonal)}
	node := &volant.Node{Name: p.Name, Region: p.Region, Roles: p.Roles}
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
	if last.Before(p.Known) { // a picture without what was known before would end what serves
		last = p.Known
	}
	return p.cat.Wait(ctx, last)
}

// awaitRecord waits until the copy of the intent has come to hold this node's record, which was written when it
// joined. At a later start it does at once, be the store up or down.
func (p *Platform) awaitRecord(ctx context.Context) error {
	changed, cancel := p.cat.Subscribe()
	defer cancel()
	tell := time.NewTicker(bootGrace)
	defer tell.Stop()
	for {
		if _, ok := p.cat.Snapshot().Node(p.Node); ok && !p.cat.Snapshot().Rev.Before(p.Known) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-tell.C:
			p.Log.Warn("this server has joined and does not reach the intent yet: control nodes do not answer in the mesh")
		}
	}
}

// reap makes tombstones of the records of machines that their host has destroyed, and destroys those that came to
// an app after it was destroyed: scaling or a deploy was about to create them.
func (p *Platform) reap(ctx context.Context) error {
	sub := p.cat.Changes()
	defer sub.Close()
	snap, left := sub.Take()
	for id := range snap.Apps() {
		left[id] = true
	}
	retry := time.NewTicker(5 * time.Second)
	defer retry.Stop()
	for {
		for id := range left {
			if !p.reapApp(ctx, snap, id) {
				break // the store is away; the ticker comes back
			}
			delete(left, id)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-sub.C:
		case <-retry.C:
		}
		var changed map[volant.AppID]bool
		snap, changed = sub.Take()
		maps.Copy(left, changed)
	}
}

// reapApp reports whether nothing is left to write for the app's machines as they are.
func (p *Platform) reapApp(ctx context.Context, snap *catalog.Snapshot, id volant.AppID) bool {
	a, ok := snap.App(id)
	for _, m := range snap.Machines(id) {
		if m.Tombstone || m.Node != p.Node {
			continue
		}
		var err error
		have, known := snap.Have(volant.MachineID(m.ID))
		switch {
		case m.Run != volant.RunDestroyed && ok && a.Tombstone:
			_, _, err = store.Update(ctx, p.Store, "host", m.Key(), func(m *volant.Machine) error {
				m.Run = volant.RunDestroyed
				return nil
			})
		case m.Run == volant.RunDestroyed && known && have.State == volant.StateDestroyed:
			err = p.bury(ctx, m, false)
		}
		if err != nil && !errors.Is(err, volant.ErrNotFound) {
			p.Log.Debug("end of machine not written yet", "machine", m.ID, "err", err)
			return false
		}
	}
	return true
}

// lastWords bounds the history that is kept of a machine once its host has forgotten it.
const lastWords = 10

// bury makes a destroyed machine's record a tombstone, with the end of its history. Its lease and its earlier configs go.
// One whose host is gone with its node is destroyed by that.
func (p *Platform) bury(ctx context.Context, m *volant.Machine, gone bool) error {
	last := p.host.Events(volant.MachineID(m.ID), lastWords)
	slices.Reverse(last)
	changes := []store.Change{store.Edit(m.Key(), func(m *volant.Machine) error {
		if m.Tombstone, m.Last = true, last; gone {
			m.Run = volant.RunDestroyed
		}
		return nil
	})}
	changes = append(changes,
		store.IfThere(store.Removal(volant.RecordKey(volant.KindLease, m.App, m.ID))),
		store.IfThere(store.Edit(volant.RecordKey(volant.KindVersions, m.App, m.ID), func(v *volant.Versions) error {
			v.Tombstone, v.Before = true, nil
			return nil
		})))
	_, err := store.Apply(ctx, p.Store, "host", changes...)
	return err
}
