package node

import (
	"context"

	"github.com/volant-edge/volant/why"
)

// reasons answers why out of the server's rings and the proxy's memory.
type reasons struct {
	Reasons
	proxy func(ctx context.Context, q why.Query) ([]why.Record, error)
}

func (r reasons) Query(ctx context.Context, q why.Query) ([]why.Record, error) {
	own, err := r.Reasons.Query(q)
	if err != nil {
		return nil, err
	}
	// The proxy may be away for a moment; what the server knows is worth having alone.
	live, err := r.proxy(ctx, q)
	if err != nil {
		live = nil
	}
	return why.Merge(q, own, live), nil
}
