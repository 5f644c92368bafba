package etcd

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"

	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"

	"github.com/volant-edge/volant"
)

// joinedMark stands in the directory of a member that began as one of several: until it has read its log, it does not
// know of the others.
const joinedMark = "joined-member"

// joined says whether the member began, or begins now, as one of several.
func joined(cfg Config) (bool, error) {
	mark := filepath.Join(cfg.Dir, joinedMark)
	if _, err := os.Stat(mark); err == nil || cfg.Join == nil {
		return err == nil, nil
	}
	return true, os.WriteFile(mark, nil, 0o600)
}

// startedBefore says whether the member that is to begin in an empty directory has been heard of by the others: then
// its directory was lost, and with it what it has promised them.
func startedBefore(ctx context.Context, cfg Config) error {
	ctx, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	for _, peer := range cfg.Join.Peers {
		if peer == cfg.Listen.peerURL() {
			continue
		}
		members, err := membersAt(ctx, peer)
		if err != nil {
			continue // the start fails if all are like this
		}
		for _, m := range members {
			if m.Name != "" && slices.Contains(m.PeerURLs, cfg.Listen.peerURL()) {
				return volant.Errorf(volant.ErrPrecondition, "the directory %s of this node's member of the store is lost", cfg.Dir).
					WithRemedy("bring it back, or replace the member")
			}
		}
	}
	return nil
}

// membersAt asks a member whom it knows.
func membersAt(ctx context.Context, peer string) ([]*membership.Member, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, peer+"/members", nil)
	if err != nil {
		return nil, err
	}
	t := &http.Transport{DisableKeepAlives: true}
	res, err := t.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close() //nolint:errcheck // it was read
	var out []*membership.Member
	err = json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&out)
	return out, err
}

// removedMark stands in the directory of a member that was removed from its cluster: it is never started again.
const removedMark = "removed-member"

func wasRemoved(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, removedMark)); err != nil {
		return nil //nolint:nilerr // it is not there
	}
	return errRemoved(dir)
}

func errRemoved(dir string) error {
	return volant.Errorf(volant.ErrPrecondition, "the member in %s was removed from the store", dir).
		WithRemedy("if this node is to be a control node again, have it join anew; the old directory is set aside, not deleted")
}
