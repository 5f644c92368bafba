package join

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	volant "github.com/volant-edge/volant"
)

// askWithin bounds one exchange.
const askWithin = 30 * time.Second

// errStranger says that who answered is not of the token's cluster.
var errStranger = errors.New("its key is not the one that the token names")

// Asker asks control nodes. Its zero value does so by the kernel's TCP.
type Asker struct {
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Ask asks the control node at addr, host:port, to be let in by the token.
func (q Asker) Ask(ctx context.Context, addr string, t Token, r Request) (Answer, error) {
	r.Version, r.Secret = version, t.Secret[:]
	if err := r.check(); err != nil { // before anything is sent
		return Answer{}, err
	}
	body, err := json.Marshal(r)
	if err != nil {
		return Answer{}, fmt.Errorf("join: %w", err)
	}
	var a Answer
	if err := q.exchange(ctx, addr, t.Cluster, http.MethodPost, joinPath, body, &a); err != nil {
		return Answer{}, err
	}
	return a, a.check(r.Node)
}

// Removed asks the control node at addr whether a node was removed from the cluster.
func (q Asker) Removed(ctx context.Context, addr string, cluster Fingerprint, node volant.NodeID) (bool, error) {
	var out struct {
		Removed bool `json:"removed"`
	}
	err := q.exchange(ctx, addr, cluster, http.MethodGet, removedPath+string(node), nil, &out)
	return out.Removed, err
}

func (q Asker) exchange(ctx context.Context, addr string, cluster Fingerprint, method, path string, body []byte, out any) error {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	dial := q.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: 10 * time.Second}).DialContext
	}
	tr := &http.Transport{
		DialContext: dial, TLSClientConfig: pinned(cluster),
		TLSHandshakeTimeout: 10 * time.Second, DisableKeepAlives: true, DisableCompression: true,
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+addr+path, bytes.NewReader(body))
	if err != nil {
		return volant.Invalidf("address of a control node %.80q: write HOST:PORT", addr)
	}
	res, err := tr.RoundTrip(req)
	switch {
	case errors.Is(err, errStranger):
		return volant.Errorf(volant.ErrUnauthorized, "%s is not of the cluster that the token is for", addr).
			WithRemedy("nothing was told to it. See that the address is right, and that the token is of this cluster")
	case err != nil:
		return volant.Errorf(volant.ErrUnavailable, "%s does not answer: %v", addr, err).
			WithRemedy("name a control node of the cluster whose TCP port %d is open to this server", volant.MeshPort)
	}
	defer res.Body.Close() //nolint:errcheck // only read
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	switch {
	case err != nil || len(b) > maxAnswer:
		return volant.Errorf(volant.ErrUnavailable, "the answer of %s is cut off or too long: %v", addr, err).WithRemedy("try again")
	case res.StatusCode != http.StatusOK:
		var wire volant.WireError
		if json.Unmarshal(b, &wire) != nil || wire.Text == "" {
			return volant.Errorf(volant.ErrUnavailable, "%s answers with status %d", addr, res.StatusCode).WithRemedy("see that this is a control node")
		}
		return wire.Err()
	}
	if err := json.Unmarshal(b, out); err != nil {
		return volant.Errorf(volant.ErrUnavailable, "the answer of %s cannot be read: %v", addr, err).WithRemedy("run the same version of Volant on both servers")
	}
	return nil
}

// pinned trusts one key, whatever its certificate says.
func pinned(cluster Fingerprint) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"},
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection looks at the key itself
		VerifyConnection: func(st tls.ConnectionState) error {
			if len(st.PeerCertificates) == 0 {
				return errStranger
			}
			sum := sha256.Sum256(st.PeerCertificates[0].RawSubjectPublicKeyInfo)
			if subtle.ConstantTimeCompare(sum[:], cluster[:]) != 1 {
				return errStranger
			}
			return nil
		},
	}
}

// check says whether an answer has what a node needs.
func (a *Answer) check(self volant.NodeID) error {
	found := false
	for i := range a.Nodes {
		found = found || volant.NodeID(a.Nodes[i].ID) == self
	}
	if !found || len(a.Secrets) != 32 || len(a.Stores) == 0 {
		return volant.Errorf(volant.ErrUnavailable, "the cluster's answer lacks what a server needs").WithRemedy("run the same version of Volant on both servers")
	}
	return nil
}
