package node

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/store/etcd"
)

func TestWishFor(t *testing.T) {
	n := func(id string, key string, tombstone bool, roles ...string) *volant.Node {
		return &volant.Node{Meta: volant.Meta{ID: id, Tombstone: tombstone}, Roles: roles, Mesh: volant.Mesh{Key: key}}
	}
	nodes := []*volant.Node{
		n("00000001", "k", false, "edge", "control"),
		n("00000002", "k", false, "control"),
		n("00000003", "", false, "control"),       // its mesh is not on yet
		n("00000004", "k", false, "edge", "host"), // lost the role, or never had it
		n("00000005", "k", true, "control"),       // thrown out
		n("00000006", "k", false),                 // of an older volant: says nothing
	}
	at := func(ids ...volant.NodeID) (urls []string) {
		for _, id := range ids {
			urls = append(urls, etcd.Endpoint(volant.MeshAddr(id)))
		}
		return urls
	}
	gone := []volant.NodeID{"00000004", "00000005"}
	for self, want := range map[volant.NodeID]etcd.Wish{
		"00000001": {Member: true, Endpoints: at("00000002"), Others: at("00000002", "00000004", "00000006"), Gone: gone},
		"00000004": {Endpoints: at("00000001", "00000002"), Others: at("00000001", "00000002", "00000006"), Gone: gone},
		"00000009": {Endpoints: at("00000001", "00000002"), Others: at("00000001", "00000002", "00000004", "00000006"), Gone: gone}, // no record yet
	} {
		if diff := cmp.Diff(want, wishFor(self, nodes)); diff != "" {
			t.Errorf("%s: %s", self, diff)
		}
	}
}

func TestStoreConfig(t *testing.T) {
	for name, tt := range map[string]struct {
		cfg StoreConfig
		ok  bool
	}{
		"none":            {StoreConfig{}, true},
		"plain":           {StoreConfig{Endpoints: []string{"http://10.0.0.1:2379", "http://10.0.0.2:2379"}, Prefix: "a/"}, true},
		"tls":             {StoreConfig{Endpoints: []string{"https://e:2379"}, Cert: "c", Key: "k", CA: "a"}, true},
		"mixed":           {StoreConfig{Endpoints: []string{"https://e:2379", "http://e:2379"}}, false},
		"no URL":          {StoreConfig{Endpoints: []string{"10.0.0.1:2379"}}, false},
		"half a key pair": {StoreConfig{Endpoints: []string{"https://e:2379"}, Cert: "c"}, false},
		"no endpoints":    {StoreConfig{Prefix: "a/"}, false},
		"files for http":  {StoreConfig{Endpoints: []string{"http://e:2379"}, CA: "a"}, false},
	} {
		if err := tt.cfg.check(); (err == nil) != tt.ok || err != nil && !errors.Is(err, volant.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
