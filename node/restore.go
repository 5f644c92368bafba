package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/datadir"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/etcd"
	"github.com/volant-edge/volant/store/local"
)

// seed fills a new store from a copy. The node becomes a control node, if it was none: the others find the store
// by the role.
func seed(ctx context.Context, st seedStore, node volant.NodeID, from string, skipDamaged bool) (local.Restored, error) {
	done, err := local.Restore(ctx, from, st, skipDamaged)
	if err != nil || node == "" {
		return done, err
	}
	_, _, err = store.Update(ctx, st, "control restore", volant.RecordKey(volant.KindNode, "", string(node)), func(n *volant.Node) error {
		if !n.Has(volant.RoleControl) {
			n.Roles = append(n.Roles, volant.RoleControl)
		}
		return nil
	})
	if errors.Is(err, volant.ErrNotFound) {
		err = nil
	}
	return done, err
}

type seedStore interface {
	store.Store
	local.Seeder
}

// RestoreConfig says what is restored into what.
type RestoreConfig struct {
	Data        string      // data directory of this node
	From        string      // the copy; this node's if empty
	SkipDamaged bool        // leave records out that cannot be read
	Store       StoreConfig // the external etcd; without endpoints it is this node's own member
}

// Restore seeds a new store from a copy of the intent, under the next cluster epoch. The old store of this node is
// set aside; it stays where it is if the copy cannot be restored.
func Restore(ctx context.Context, cfg RestoreConfig) (string, error) {
	from := cfg.From
	if from == "" {
		from = filepath.Join(cfg.Data, "intent", "copy.db")
	}
	if _, err := os.Stat(from); err != nil { // before anything is made
		return "", volant.Errorf(volant.ErrNotFound, "there is no copy of the intent: %v", err).
			WithRemedy("name the data directory with --data, or the copy of another node with --from")
	}
	if err := cfg.Store.check(); err != nil {
		return "", err
	}
	dir, err := datadir.Open(cfg.Data)
	if err != nil {
		return "", err
	}
	defer func() { _ = dir.Close() }() // only the lock
	var done local.Restored
	aside := ""
	if len(cfg.Store.Endpoints) > 0 {
		done, err = restoreExternal(ctx, cfg, from)
	} else {
		done, aside, err = restoreOwn(ctx, dir, cfg, from)
	}
	if err != nil {
		return "", err
	}
	lines := []string{fmt.Sprintf("Restored %d records from revision %s as %s.", done.Records, done.From, done.To)}
	if aside != "" {
		lines[0] += " The old store is at " + aside + "."
	}
	for _, key := range done.Damaged {
		lines = append(lines, "Left out, since it is damaged: "+key)
	}
	return strings.Join(lines, "\n"), nil
}

func restoreOwn(ctx context.Context, dir *datadir.Dir, cfg RestoreConfig, from string) (done local.Restored, aside string, err error) {
	etcdDir := dir.Path("etcd")
	if aside, err = etcd.SetAside(etcdDir); err != nil {
		return done, "", err
	}
	undo := func(err error) error {
		err = errors.Join(err, os.RemoveAll(etcdDir))
		if aside != "" { // what was there is as it was
			err = errors.Join(err, os.Rename(aside, etcdDir))
		}
		return err
	}
	if _, err := dir.Sub("etcd"); err != nil {
		return done, "", undo(err)
	}
	st, err := etcd.Open(ctx, etcd.Config{Dir: etcdDir, Name: string(dir.Node())})
	if err != nil {
		return done, "", undo(err)
	}
	done, err = seed(ctx, st, dir.Node(), from, cfg.SkipDamaged)
	if err = errors.Join(err, st.Close()); err != nil {
		return done, "", undo(err)
	}
	return done, aside, nil
}

func restoreExternal(ctx context.Context, cfg RestoreConfig, from string) (local.Restored, error) {
	rc, err := cfg.Store.remote()
	if err != nil {
		return local.Restored{}, err
	}
	r := etcd.NewRemote(rc)
	defer r.Close() //nolint:errcheck // what matters was written
	ctx, cancel := context.WithTimeout(ctx, openTime)
	defer cancel()
	if err := r.Start(ctx); err != nil {
		return local.Restored{}, err
	}
	return seed(ctx, r, "", from, cfg.SkipDamaged)
}
