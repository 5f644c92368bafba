package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/datadir"
	"github.com/volant-edge/volant/store"
	"github.com/volant-edge/volant/store/etcd"
	"github.com/volant-edge/volant/store/local"
)

// intent is the store of this node, be it up or down, and the copy that all reading is done from.
type intent struct {
	store store.Store
	copy  *local.Copy
	etcd  *etcd.Store
	down  bool // the store could not be opened at the start; it is tried again
}

// openIntent opens the copy and the store. A store that cannot be opened leaves a node which serves
// from its copy; only without a copy too that is an error.
func openIntent(ctx context.Context, dir *datadir.Dir, log *slog.Logger) (*intent, error) {
	in := &intent{}
	copyDir, err := dir.Sub("intent")
	if err != nil {
		return nil, err
	}
	etcdDir, err := dir.Sub("etcd")
	if err != nil {
		return nil, err
	}
	cfg := local.Config{Path: copyDir + "/copy.db", Log: log}
	var floor store.Revision
	in.copy, err = local.Open(cfg)
	damaged := errors.Is(err, local.ErrDamaged)
	if err != nil && !damaged {
		return nil, err
	}
	if damaged {
		floor = store.Revision{Rev: 1} // of any store, but of one: an empty store is not taken for this node's
	} else {
		floor = in.copy.Revision()
	}
	opening, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	in.etcd = etcd.New(etcd.Config{Dir: etcdDir, Floor: floor, Log: quiet(log)})
	in.store = in.etcd
	err = in.etcd.Start(opening)
	switch {
	case err == nil:
	case damaged || floor.IsZero():
		return nil, unusable(err)
	default:
		log.Error("the store is down: serving from this node's copy", "err", err)
		in.down = true
		return in, nil
	}
	if damaged {
		if in.copy, err = local.Rebuild(ctx, cfg, in.store); err != nil {
			return nil, errors.Join(err, in.etcd.Close())
		}
		log.Warn("the copy of the intent was damaged and made anew from the store")
	}
	return in, nil
}

// unusable says that there is nothing to start from.
func unusable(err error) error {
	text := err.Error()
	var known *volant.Error
	if errors.As(err, &known) {
		text = known.Text // its remedy counts on the copy
	}
	return volant.Errorf(volant.ErrUnavailable, "neither the store nor its copy can be opened: %s", text).
		WithRemedy("run volant control restore --from FILE with the copy of another node or of a backup, which is its intent/copy.db")
}

func (in *intent) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return in.etcd.Run(ctx) })
	g.Go(func() error { return in.copy.Run(ctx, in.store) })
	return g.Wait()
}

func (in *intent) close() error {
	return errors.Join(in.etcd.Close(), in.copy.Close())
}

// quiet is log without what the store says below a warning: it says a line for each write.
func quiet(log *slog.Logger) *slog.Logger { return slog.New(warnings{log.Handler()}) }

type warnings struct{ slog.Handler }

func (w warnings) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && w.Handler.Enabled(ctx, l)
}

func (w warnings) WithAttrs(a []slog.Attr) slog.Handler { return warnings{w.Handler.WithAttrs(a)} }

func (w warnings) WithGroup(name string) slog.Handler { return warnings{w.Handler.WithGroup(name)} }

// seed makes a store and fills it from a copy.
func seed(ctx context.Context, dir *datadir.Dir, from string, skipDamaged bool) (local.Restored, error) {
	etcdDir, err := dir.Sub("etcd")
	if err != nil {
		return local.Restored{}, err
	}
	st, err := etcd.Open(ctx, etcd.Config{Dir: etcdDir})
	if err != nil {
		return local.Restored{}, err
	}
	done, err := local.Restore(ctx, from, st, skipDamaged)
	return done, errors.Join(err, st.Close())
}

// Restore seeds a new store from a copy of the intent, under the next cluster epoch. The old store is
// set aside; it stays where it is if the copy cannot be restored.
func Restore(ctx context.Context, data, from string, skipDamaged bool) (string, error) {
	if from == "" {
		from = filepath.Join(data, "intent", "copy.db")
	}
	if _, err := os.Stat(from); err != nil { // before anything is made
		return "", volant.Errorf(volant.ErrNotFound, "there is no copy of the intent: %v", err).
			WithRemedy("name the data directory with --data, or the copy of another node with --from")
	}
	dir, err := datadir.Open(data)
	if err != nil {
		return "", err
	}
	defer func() { _ = dir.Close() }() // only the lock
	etcdDir := dir.Path("etcd")
	aside := ""
	if _, err := os.Stat(etcdDir); err == nil {
		aside = fmt.Sprintf("%s.old-%d", etcdDir, time.Now().Unix())
		if err := os.Rename(etcdDir, aside); err != nil {
			return "", fmt.Errorf("set the old store aside: %w", err)
		}
	}
	done, err := seed(ctx, dir, from, skipDamaged)
	if err != nil {
		err = errors.Join(err, os.RemoveAll(etcdDir))
		if aside != "" { // what was there is as it was
			err = errors.Join(err, os.Rename(aside, etcdDir))
		}
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
