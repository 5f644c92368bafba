package control

import (
	"bytes"
	"cmp"
	"net/http"
	"slices"

	volant "github.com/volant-edge/volant"
	"github.com/volant-edge/volant/metrics"
)

// metrics answers in Prometheus' text form what the node measures of the apps that the caller may read. Who
// acts for every organization sees the node's own too.
func (s *Server) metrics(w http.ResponseWriter, c *call) error {
	var apps []*volant.App
	for _, a := range s.Catalog.Snapshot().Apps() {
		if !a.Tombstone && c.who.sees(a) {
			apps = append(apps, a)
		}
	}
	slices.SortFunc(apps, func(a, b *volant.App) int { return cmp.Compare(a.Name, b.Name) })
	var out bytes.Buffer
	if err := metrics.Write(&out, s.Measure(c.ctx(), apps, c.who.root())); err != nil {
		return err
	}
	w.Header().Set("Content-Type", metrics.ContentType)
	_, _ = w.Write(out.Bytes()) // the caller is gone: nobody to tell
	return nil
}
